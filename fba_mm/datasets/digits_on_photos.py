"""A detection or segmentation data set made of real pixels that are already on the machine.

scikit-learn carries 1,797 handwritten digits, scikit-learn and scikit-image carry photos in their
wheels. Digits drawn on photos are small enough to train on in minutes, hold objects of all the
sizes that a feature pyramid tells apart, and need no download.
"""

import hashlib
import json
import math
import operator
import os
from bisect import bisect_right
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from ..errors import LocalLearningError
from .built_folder import building, check_own, progress
from .photos import LICENSES, PHOTOS, load_photo, photo_names

DIGIT_CLASSES = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
# In masks; a digit's label is one more than the digit.
MASK_CLASSES = ('background', *DIGIT_CLASSES)
# Red, green and blue of each, so that a picture of a mask can be looked at.
MASK_PALETTE = (
    0,
    0,
    0,
    31,
    119,
    180,
    255,
    127,
    14,
    44,
    160,
    44,
    214,
    39,
    40,
    148,
    103,
    189,
    140,
    86,
    75,
    227,
    119,
    194,
    127,
    127,
    127,
    188,
    189,
    34,
    23,
    190,
    207,
)

_BUILDER = 'fba_mm.datasets.build_digits_on_photos'
# Raise it with every change that alters pixels, boxes or the split: a folder built before the
# change then counts as another data set.
_RECIPE = 1

_DIGITS_SOURCE = dict(
    name='Optical Recognition of Handwritten Digits, test part, as in sklearn.datasets.load_digits',
    authors='E. Alpaydin, C. Kaynak',
    url='https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits',
    license=4,
)
# The samples lie form by form: each writer copied the same sequence of about 130 digits, which
# the labels show.
_FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 905, 1029, 1157, 1287, 1415, 1545, 1667)
# No filled-in form is on both sides.
_FIRST_VAL_DIGIT = _FORM_STARTS[11]

_SPLITS = ('train', 'val')
_MIN_IMAGE_SIDE = 48
# Larger digits would leave no room for others.
_MAX_DIGIT_SHARE = 2 / 3
# Of the smaller of two boxes. Stricter than the same bound on IoU, which a small digit in the
# middle of a large one would pass.
_MAX_OVERLAP = 0.05
_JPEG = dict(format='JPEG', quality=92, subsampling=0)
# Ink that covers at least a quarter of a pixel can be seen.
_VISIBLE = 64


def build_digits_on_photos(
    out_dir: Union[str, os.PathLike],
    num_train: int = 600,
    num_val: int = 120,
    image_size: Union[int, Sequence[int]] = 192,
    seed: int = 0,
    digits_per_image: Sequence[int] = (1, 6),
    digit_size: Sequence[int] = (12, 128),
    masks: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a COCO-format detection data set: handwritten digits drawn on photos.

    Digits come from ``sklearn.datasets.load_digits``, photos from the files that scikit-image and
    scikit-learn install; nothing is downloaded. A handwritten sample, and a photo, serves either
    training or validation, never both.

    The folder holds ``train/*.jpg``, ``val/*.jpg`` and ``annotations/instances_{train,val}.json``.
    A box is tight around the visible ink, ``area`` is the area of the box in square px, and a
    category's id is the digit itself. Beyond COCO's fields each image names its ``photo``,
    ``crop`` (x, y, w, h in the photo's px) and ``flipped``, each annotation the ``digit_index``
    of its sample. With ``masks`` there are ``masks/train/*.png`` and ``masks/val/*.png`` too, with
    a class of :data:`MASK_CLASSES` for each pixel: 0 for the background, and one more than the
    digit where its ink can be seen.

    The same arguments give the same bytes under the same versions of NumPy and Pillow. Image
    number i does not depend on how many are built, so a small set is the beginning of a large one.
    The folder appears when it is complete, and not before; a second call with the same settings
    finds it and returns at once. A build that is killed, as opposed to interrupted, leaves a
    hidden ``.NAME.building-*`` beside it that can be deleted.

    Args:
        out_dir (str or PathLike): Folder to write. It must be new, empty or of a former build.
        num_train (int): Number of training images.
        num_val (int): Number of validation images.
        image_size (int or tuple[int, int]): Height and width in px, or one number for both.
        seed (int): Seed of everything that is drawn; the split does not depend on it.
        digits_per_image (tuple[int, int]): Least and greatest number of digits that are tried per
            image. Those that find no free place are left out; one is always there.
        digit_size (tuple[int, int]): Least and greatest longer side of a box in px, drawn
            log-uniformly. The greatest is cut to 2/3 of the image's shorter side.
        masks (bool): Also write the class of each pixel, for segmentation.
        overwrite (bool): Replace a data set of other settings, or a damaged one, in ``out_dir``.
            A complete one of the same settings is kept. Files that no build wrote are never
            deleted: a folder that holds any is refused.

    Returns:
        Path: The folder as an absolute path, a ``data_root`` for MMDetection's ``CocoDataset``.

    Raises:
        LocalLearningError: An argument is out of range, ``out_dir`` can't be written or holds
            something else, or scikit-image's or scikit-learn's files are missing.

    Example:
        >>> from fba_mm.datasets import DIGIT_CLASSES, build_digits_on_photos
        >>> root = build_digits_on_photos('data/digits', num_train=600, num_val=120)
        >>> train = dict(type='CocoDataset', data_root=str(root),
        ...              ann_file='annotations/instances_train.json',
        ...              data_prefix=dict(img='train/'),
        ...              metainfo=dict(classes=DIGIT_CLASSES))
    """
    settings = _check_settings(num_train, num_val, image_size, seed, digits_per_image, digit_size)
    if masks:  # Without, the settings are those that folders were built with before there were any.
        settings['masks'] = True
    out = Path(out_dir).expanduser().resolve()
    try:
        if not _is_complete(out, settings):
            _check_free(out, settings, overwrite)
            _build(out, settings, overwrite)
    except OSError as e:
        raise LocalLearningError(
            f'cannot write {out} ({e.strerror or e}): give an out_dir in a '
            'folder with free space that you may write to'
        ) from e
    return out


def _build(out: Path, settings: dict, overwrite: bool) -> None:
    digits = load_digits()

    def is_there() -> bool:
        if _is_complete(out, settings):
            return True
        _check_free(out, settings, overwrite)
        return False

    with building(out, is_there) as folder, progress(
        'Drawing digits on photos', settings['num_train'] + settings['num_val']
    ) as advance:
        for split in _SPLITS:
            _build_split(folder, split, settings, digits, advance)


def _check_settings(num_train, num_val, image_size, seed, digits_per_image, digit_size) -> dict:
    """All that decides the pixels, as it is written into the annotation files."""
    if isinstance(image_size, (str, bytes)) or not hasattr(image_size, '__len__'):
        image_size = (image_size, image_size)
    settings = dict(
        recipe=_RECIPE,
        num_train=_integer('num_train', num_train, 1),
        num_val=_integer('num_val', num_val, 1),
        image_size=_pair('image_size', image_size, _MIN_IMAGE_SIDE, 'height, width'),
        seed=_integer('seed', seed, 0),
        digits_per_image=_pair('digits_per_image', digits_per_image, 1, 'least, greatest'),
        digit_size=_pair('digit_size', digit_size, 4, 'least, greatest'),
    )
    for name in ('digits_per_image', 'digit_size'):
        if settings[name][0] > settings[name][1]:
            raise LocalLearningError(
                f'{name}={tuple(settings[name])}: the least number comes '
                f'first, give {tuple(reversed(settings[name]))}'
            )
    if settings['digit_size'][0] > _largest_digit(settings):
        height, width = settings['image_size']
        side = math.ceil(settings['digit_size'][0] / _MAX_DIGIT_SHARE)
        raise LocalLearningError(
            f'digit_size={tuple(settings["digit_size"])} does not fit images '
            f'of {height}x{width} px: give image_size={side} or more, '
            'or smaller digits'
        )
    return settings


def _integer(name: str, value, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise LocalLearningError(f'{name}={value!r}: give a whole number') from None
    if number < least:
        raise LocalLearningError(f'{name}={value!r}: give at least {least}')
    return number


def _pair(name: str, value, least: int, meaning: str) -> List[int]:
    if isinstance(value, (str, bytes)) or not hasattr(value, '__len__') or len(value) != 2:
        raise LocalLearningError(f'{name}={value!r}: give two whole numbers ({meaning})')
    return [_integer(name, number, least) for number in value]


def _largest_digit(settings: dict) -> int:
    return min(settings['digit_size'][1], int(_MAX_DIGIT_SHARE * min(settings['image_size'])))


# What a folder holds


def _signature(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _annotation_file(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}.json'


def _former_settings(root: Path, split: str) -> Optional[dict]:
    """Settings of the build that wrote a split's annotation file, None where there is none."""
    try:
        info = json.loads(_annotation_file(root, split).read_text(encoding='utf-8'))['info']
        if info['builder'] == _BUILDER and info['signature'] == _signature(info['settings']):
            return info['settings']
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def _files_of(settings: dict) -> List[str]:
    """Paths of all files of a build, relative to its folder."""
    files = [f'annotations/instances_{split}.json' for split in _SPLITS]
    for split in _SPLITS:
        files += [f'{split}/{_image_name(i)}' for i in range(settings[f'num_{split}'])]
        if settings.get('masks'):
            files += [f'masks/{split}/{_mask_name(i)}' for i in range(settings[f'num_{split}'])]
    return files


def _image_name(index: int) -> str:
    return f'{index + 1:06d}.jpg'


def _mask_name(index: int) -> str:
    return f'{index + 1:06d}.png'


def _missing_files(root: Path, settings: dict) -> List[str]:
    return [
        name
        for name in _files_of(settings)
        if not (root / name).is_file() or (root / name).stat().st_size == 0
    ]


def _is_complete(root: Path, settings: dict) -> bool:
    return all(
        _former_settings(root, split) == settings for split in _SPLITS
    ) and not _missing_files(root, settings)


def _check_free(out: Path, settings: dict, overwrite: bool) -> None:
    """Refuse to touch anything but an empty folder or, when asked to, a former build."""
    if not out.exists():
        return
    if not out.is_dir():
        raise LocalLearningError(f'out_dir={str(out)!r} is a file: give a folder')
    former = [s for s in (_former_settings(out, split) for split in _SPLITS) if s is not None]
    own = {name for s in former for name in _files_of(s)}
    own |= {'annotations', 'masks', *_SPLITS, *(f'masks/{split}' for split in _SPLITS)}
    if not former:
        own = set()
    check_own(out, own.__contains__)
    if not former or overwrite:
        return
    differing = [
        f'{key}={former[0].get(key)}, not {value}'
        for key, value in settings.items()
        if former[0].get(key) != value
    ]
    if former[0].get('masks') and not settings.get('masks'):
        differing.append('masks=True, not False')
    if differing:
        state = f'holds a data set of other settings ({"; ".join(differing)})'
    else:
        missing = _missing_files(out, settings)
        damage = (
            f'{missing[0]} is missing or empty'
            if missing
            else 'an annotation file is unreadable or of another build'
        )
        state = f'is damaged ({damage})'
    raise LocalLearningError(f'{out} {state}: give another out_dir or overwrite=True')


# Sources


def load_digits():
    """scikit-learn's 1,797 handwritten digits: ``images``, 8×8 from 0 to 16, and ``target``.

    Raises:
        LocalLearningError: scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise LocalLearningError(
            'the digits come with scikit-learn: pip install scikit-learn'
        ) from None
    return datasets.load_digits()


def digit_indices(split: str, count: int) -> range:
    """Samples of a split; no form is in both.

    Args:
        split: ``'train'`` or ``'val'``.
        count: Number of all samples.
    """
    return range(_FIRST_VAL_DIGIT) if split == 'train' else range(_FIRST_VAL_DIGIT, count)


def form_of(index: int) -> int:
    """Number of the form that a sample is from.

    Args:
        index: Of the sample, from 0.
    """
    return bisect_right(_FORM_STARTS, index) - 1


# Pictures


def _build_split(root: Path, split: str, settings: dict, digits, advance) -> None:
    photos = {name: load_photo(name) for name in photo_names(split)}
    indices = digit_indices(split, len(digits.target))
    by_class = [[i for i in indices if digits.target[i] == c] for c in range(len(DIGIT_CLASSES))]
    glyphs = {}  # type: Dict[int, Image.Image]
    images, annotations = [], []
    (root / split).mkdir()
    if settings.get('masks'):
        (root / 'masks' / split).mkdir(parents=True)
    for i in range(settings[f'num_{split}']):
        rng = np.random.default_rng([settings['seed'], _SPLITS.index(split), i])
        name = sorted(photos)[rng.integers(len(photos))]
        canvas, record = _background(photos[name], settings['image_size'], rng)
        labels = np.zeros(canvas.shape[:2], np.uint8)
        image_id = i + 1
        images.append(
            dict(
                id=image_id,
                file_name=_image_name(i),
                height=canvas.shape[0],
                width=canvas.shape[1],
                license=PHOTOS[name].license,
                photo=name,
                **record,
            )
        )
        for category, index, (x, y, w, h) in _draw_digits(
            canvas, labels, by_class, digits.images, glyphs, settings, rng
        ):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    digit_index=index,
                )
            )
        picture = Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))
        picture.save(root / split / _image_name(i), **_JPEG)
        if settings.get('masks'):
            mask = Image.fromarray(labels)
            mask.putpalette(MASK_PALETTE)
            mask.save(root / 'masks' / split / _mask_name(i))
        advance()
    info = dict(
        description=f'Handwritten digits on photos, {split}',
        builder=_BUILDER,
        settings=settings,
        signature=_signature(settings),
        split=split,
        photos={
            n: dict(package=p.package, file=p.file, license=p.license, source=p.source)
            for n, p in PHOTOS.items()
            if p.split == split
        },
        digits=dict(_DIGITS_SOURCE, indices=list(indices)),
    )
    coco = dict(
        info=info,
        licenses=LICENSES,
        images=images,
        annotations=annotations,
        categories=[
            dict(id=i, name=name, supercategory='digit') for i, name in enumerate(DIGIT_CLASSES)
        ],
    )
    _annotation_file(root, split).parent.mkdir(exist_ok=True)
    _annotation_file(root, split).write_text(json.dumps(coco), encoding='utf-8')


def _background(
    photo: Image.Image, image_size: Sequence[int], rng: np.random.Generator
) -> Tuple[np.ndarray, dict]:
    """A part of a photo as float32 RGB of (height, width, 3) in 0..255, and where it lay."""
    height, width = image_size
    largest = min(photo.width / width, photo.height / height)
    scale = largest * rng.uniform(0.4, 1)
    w, h = max(1, int(scale * width)), max(1, int(scale * height))
    x, y = int(rng.integers(photo.width - w + 1)), int(rng.integers(photo.height - h + 1))
    part = photo.resize((width, height), Image.BICUBIC, box=(x, y, x + w, y + h))
    canvas = np.asarray(part, dtype=np.float32)
    flipped = bool(rng.random() < 0.5)
    if flipped:
        canvas = canvas[:, ::-1]
    contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2)
    mean = canvas.mean()
    canvas = ((canvas - mean) * contrast + mean) * brightness
    return canvas.clip(0, 255), dict(crop=[x, y, w, h], flipped=flipped)


def _draw_digits(
    canvas: np.ndarray,
    labels: np.ndarray,
    by_class: List[List[int]],
    samples: np.ndarray,
    glyphs: Dict[int, Image.Image],
    settings: dict,
    rng: np.random.Generator,
) -> List[Tuple[int, int, Tuple[int, int, int, int]]]:
    """Draw on the canvas, and the class of each pixel on ``labels``, both in place.

    Returns (category, sample, box as x, y, w, h) of each digit.
    """
    height, width = canvas.shape[:2]
    least, greatest = settings['digit_size'][0], _largest_digit(settings)
    count = rng.integers(settings['digits_per_image'][0], settings['digits_per_image'][1] + 1)
    # Half-pixel margins make both ends as likely as the sizes between them.
    sizes = np.exp(rng.uniform(np.log(least - 0.5), np.log(greatest + 0.5), count))
    # Large ones first: they would find no place between small ones.
    sizes = np.sort(np.rint(sizes).astype(int).clip(least, greatest))[::-1]
    palette = _Palette(canvas, rng)
    drawn = []
    for size in sizes:
        category = int(rng.integers(len(by_class)))
        index = int(rng.choice(by_class[category]))
        if index not in glyphs:
            glyphs[index] = _glyph(samples[index])
        alpha = _scale_ink(glyphs[index], int(size))
        h, w = alpha.shape
        for _ in range(30):
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            if all(_overlap((x, y, w, h), box) < _MAX_OVERLAP for _, _, box in drawn):
                break
        else:
            continue
        patch = canvas[y : y + h, x : x + w]
        patch += (alpha[..., None] / np.float32(255)) * (palette.ink_for(x, y, w, h) - patch)
        labels[y : y + h, x : x + w][alpha >= _VISIBLE] = category + 1
        drawn.append((category, index, (x, y, w, h)))
    return drawn


def _glyph(sample: np.ndarray) -> Image.Image:
    """A sample's ink with sharp outlines at about 128 px: greyscale, 255 where there is ink."""
    from scipy.ndimage import gaussian_filter

    scale, margin, outline, edge = 16, 2, 0.43, 8
    coverage = np.pad(sample.astype(np.float32) / 16, margin)
    # Sharpened, because 8x8 samples blur the holes of 4, 6, 8 and 9 until they close.
    coverage += 1.2 * (coverage - gaussian_filter(coverage, 1.2))
    smooth = Image.fromarray(coverage).resize([scale * n for n in coverage.shape], Image.BICUBIC)
    ink = ((np.asarray(smooth) - outline) * edge + 0.5).clip(0, 1)
    return _crop_to_ink(Image.fromarray(np.rint(255 * ink).astype(np.uint8)), 128)


def _scale_ink(glyph: Image.Image, size: int) -> np.ndarray:
    """Antialiased ink as uint8 (h, w), cropped to what is visible, the longer side ``size`` px."""
    scale = size / max(glyph.size)
    target = [max(1, round(n * scale)) for n in glyph.size]
    method = Image.BOX if scale < 1 else Image.BICUBIC
    return np.asarray(_crop_to_ink(glyph.resize(target, method), _VISIBLE))


def _crop_to_ink(picture: Image.Image, threshold: int) -> Image.Image:
    return picture.crop(picture.point(lambda value: 255 * (value >= threshold)).getbbox())


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Area that two boxes (x, y, w, h) share, as a share of the smaller one."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


class _Palette:
    """Random ink colours that can be told from the background where the ink goes."""

    # In CIELAB, where 100 is the step from black to white: the difference in colour that all but
    # the most similar tenth of the background keep from the ink, and the difference in mean
    # lightness, without which hues alone are hard to read.
    COLOUR, LIGHTNESS = 45, 25

    def __init__(self, canvas: np.ndarray, rng: np.random.Generator) -> None:
        from skimage.color import rgb2lab

        # Every third pixel tells enough of the colours and costs a ninth.
        self._background = rgb2lab(canvas[::3, ::3] / 255)
        self._rgb = rng.integers(0, 256, (64, 3)).astype(np.float32)
        self._lab = rgb2lab(self._rgb / 255)
        self._rng = rng

    def ink_for(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        """Colour (3,) for a box; the one that stands out most where none does enough."""
        around = self._background[
            max(0, y - 3) // 3 : (y + h + 3) // 3 + 1, max(0, x - 3) // 3 : (x + w + 3) // 3 + 1
        ].reshape(-1, 3)
        choice = self._rng.permutation(len(self._rgb))[:16]
        difference = np.linalg.norm(around[:, None] - self._lab[choice], axis=-1)
        colour = np.percentile(difference, 10, axis=0)
        lightness = np.abs(around[:, 0].mean() - self._lab[choice, 0])
        contrast = np.minimum(colour / self.COLOUR, lightness / self.LIGHTNESS)
        enough = np.flatnonzero(contrast >= 1)
        return self._rgb[choice[enough[0] if len(enough) else contrast.argmax()]]
