"""Pairs of photos in high and low resolution, made of photos that are already on the machine."""

import hashlib
import json
import os
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple, Union

from PIL import Image

from ..arguments import check_count
from ..errors import LocalLearningError
from .built_folder import building, check_own, progress
from .photos import LICENSES, PHOTOS, load_photo, photo_names

SCALES = (2, 3, 4)

_BUILDER = 'fba_mm.datasets.build_photo_pairs'
# Raise it with every change that alters pixels: an older folder then counts as another data set.
_RECIPE = 1
# A side that every scale divides.
_UNIT = 12
# Larger photos are made smaller first, which also takes off what JPEG left on them.
_MAX_SIDE = 640
_TILE_SIZE = 192
_IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def build_photo_pairs(
    out_dir: Union[str, os.PathLike],
    images: Union[str, os.PathLike, None] = None,
    tile_size: Optional[int] = None,
    overwrite: bool = False,
) -> Path:
    """Write photos in high resolution beside their smaller forms, as super-resolution trains on.

    Without ``images``, of the photos that scikit-image and scikit-learn install: nothing is
    downloaded, no photo is in both splits, and ``train`` and ``val`` are folders in ``out_dir``.
    With ``images``, of a folder's own pictures: a test set such as Set5, or training photos.

    ``train``, ``val``, and with ``images`` the folder itself, are laid out as MMagic's Set5:
    ``GTmod12/*.png``, cropped to multiples of 12, and ``LRbicx2``, ``LRbicx3`` and ``LRbicx4`` with
    the same names, reduced by antialiased bicubic interpolation. ``dataset.json`` names sources
    and licences.

    The folder appears when it is complete, and not before; a second call finds it and returns.

    Args:
        out_dir (str or PathLike): Folder to write. It must be new, empty or of a former build.
        images (str or PathLike): Folder with pictures of your own, in any format that Pillow reads.
        tile_size (int): Cut training photos into tiles of that height and width in px, a multiple
            of 12: a patch of a tile is read quickly. Unset, 192, and pictures of your own stay
            whole.
        overwrite (bool): Replace a former build of other settings. Files that no build wrote are
            never deleted: a folder that holds any is refused.

    Returns:
        Path: The folder as an absolute path.

    Raises:
        LocalLearningError: An argument is out of range, ``images`` holds no picture or one smaller
            than 12 px, ``out_dir`` can't be written or holds something else, or scikit-image's or
            scikit-learn's files are missing.

    Example:
        >>> root = build_photo_pairs('data/photo_pairs')
        >>> train = dict(type='BasicImageDataset', data_root=str(root / 'train'),
        ...              data_prefix=dict(img='LRbicx2', gt='GTmod12'),
        ...              metainfo=dict(dataset_type='photos', task_name='sisr'))
    """
    if (
        tile_size is not None
        and check_count('tile_size', tile_size, _UNIT, f'a multiple of {_UNIT},') % _UNIT
    ):
        raise LocalLearningError(f'tile_size={tile_size}: give a multiple of {_UNIT}')
    out = Path(out_dir).expanduser().resolve()
    if images is None:
        sources = _carried_photos()
        tiles = dict(train=tile_size or _TILE_SIZE, val=None)
    else:
        sources = {'': _pictures_of(Path(images).expanduser())}
        tiles = {'': tile_size}
    settings = dict(
        recipe=_RECIPE,
        tiles=tiles,
        splits={
            split: {name: source for name, (source, _) in named.items()}
            for split, named in sources.items()
        },
    )
    try:
        if not _is_there(out, settings, overwrite):
            with building(out, lambda: _is_there(out, settings, overwrite)) as folder:
                _build(folder, sources, settings)
    except OSError as e:
        raise LocalLearningError(
            f'cannot write {out} ({e.strerror or e}): give an out_dir in a '
            'folder with free space that you may write to'
        ) from e
    return out


# Photos by name: what to note of each, and how to read it.
Photos = Dict[str, Tuple[dict, Callable[[], Image.Image]]]


def _carried_photos() -> Dict[str, Photos]:
    return {
        split: {
            name: (dict(PHOTOS[name]._asdict()), lambda name=name: _at_most(load_photo(name)))
            for name in photo_names(split)
        }
        for split in ('train', 'val')
    }


def _pictures_of(folder: Path) -> Photos:
    paths = sorted(p for p in folder.glob('*') if p.suffix.lower() in _IMAGES)
    if not paths:
        raise LocalLearningError(
            f'images={str(folder)!r} holds no picture ({", ".join(_IMAGES)}): give a folder that '
            'does'
        )
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise LocalLearningError(
            f'{folder} has several pictures named {twice[0]}: rename all but one'
        )
    return {path.stem: (dict(md5=_md5(path)), lambda path=path: _read(path)) for path in paths}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, SyntaxError) as error:
        raise LocalLearningError(
            f'{path} cannot be read as a picture ({error}): replace or remove it'
        ) from error


def _at_most(photo: Image.Image) -> Image.Image:
    scale = _MAX_SIDE / max(photo.size)
    if scale >= 1:
        return photo
    return photo.resize([round(side * scale) for side in photo.size], Image.LANCZOS)


def _build(folder: Path, sources: Dict[str, Photos], settings: dict) -> None:
    total = sum(len(named) for named in sources.values())
    with progress('Reducing photos', total) as advance:
        for split, named in sources.items():
            for kind in ('GTmod12', *(f'LRbicx{scale}' for scale in SCALES)):
                (folder / split / kind).mkdir(parents=True)
            for name, (_, read) in named.items():
                _save_pair(folder / split, name, read(), settings['tiles'][split])
                advance()
    info = dict(
        builder=_BUILDER,
        settings=settings,
        licenses=LICENSES,
        files={split: len(list((folder / split / 'GTmod12').iterdir())) for split in sources},
    )
    (folder / 'dataset.json').write_text(json.dumps(info, indent=1), encoding='utf-8')


def _save_pair(root: Path, name: str, photo: Image.Image, tile_size: Optional[int]) -> None:
    width, height = (side - side % _UNIT for side in photo.size)
    if not width or not height:
        raise LocalLearningError(
            f'{name} has {photo.height}x{photo.width} px, less than {_UNIT} on a side: remove it'
        )
    photo = photo.crop((0, 0, width, height))
    reduced = {
        scale: photo.resize((width // scale, height // scale), Image.BICUBIC) for scale in SCALES
    }
    for number, (x, y, w, h) in enumerate(_tiles(width, height, tile_size)):
        file = f'{name}.png' if tile_size is None else f'{name}_{number:03d}.png'
        photo.crop((x, y, x + w, y + h)).save(root / 'GTmod12' / file)
        for scale, small in reduced.items():
            box = [side // scale for side in (x, y, x + w, y + h)]
            small.crop(box).save(root / f'LRbicx{scale}' / file)


def _tiles(width: int, height: int, size: Optional[int]) -> Iterator[Tuple[int, int, int, int]]:
    """Boxes (x, y, w, h) that cover a photo, those at the far sides shifted back into it."""
    if size is None:
        yield 0, 0, width, height
        return
    w, h = min(size, width), min(size, height)
    for y in _starts(height, h):
        for x in _starts(width, w):
            yield x, y, w, h


def _starts(length: int, size: int) -> Sequence[int]:
    starts = list(range(0, length - size + 1, size))
    return starts if starts[-1] == length - size else [*starts, length - size]


def _check_own(out: Path, info: dict) -> None:
    """Refuse to replace a folder that holds more than the files of its build."""
    own = {'dataset.json'}
    for split, photos in info['settings']['splits'].items():
        files = [f'{photo}.png' for photo in photos]
        if info['settings']['tiles'][split] is not None:
            files = [
                f'{photo}_{number:03d}.png'
                for photo in photos
                for number in range(info['files'][split])
            ]
        for kind in ('GTmod12', *(f'LRbicx{scale}' for scale in SCALES)):
            folder = f'{split}/{kind}' if split else kind
            own.update((split, folder), (f'{folder}/{file}' for file in files))
    check_own(out, own.__contains__)


def _is_there(out: Path, settings: dict, overwrite: bool) -> bool:
    """Whether ``out`` holds this very data set; raises where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise LocalLearningError(f'out_dir={str(out)!r} is a file: give a folder')
    if not any(out.iterdir()):
        return False
    try:
        info = json.loads((out / 'dataset.json').read_text(encoding='utf-8'))
        own = info['builder'] == _BUILDER
        counts = {
            (split, kind): len(list((out / split / kind).glob('*.png')))
            for split in info['files']
            for kind in ('GTmod12', *(f'LRbicx{scale}' for scale in SCALES))
        }
    except (OSError, ValueError, LookupError, TypeError):
        own = False
    if not own:
        raise LocalLearningError(
            f'{out} holds files that no build wrote: give another out_dir, or move them away'
        )
    whole = all(count == info['files'][split] for (split, _), count in counts.items())
    if whole and info['settings'] == settings:
        return True
    if overwrite:
        _check_own(out, info)
        return False
    state = 'holds a data set of other settings or pictures' if whole else 'is damaged, files lack'
    raise LocalLearningError(f'{out} {state}: give another out_dir or overwrite=True')
