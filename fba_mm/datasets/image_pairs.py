"""Faults of image pairs, found before a network that enlarges is trained on them."""

import os
from typing import List, NamedTuple, Optional, Sequence, Tuple

from PIL import Image
from rich.progress import track

from ..errors import LocalLearningError

# Pillow's modes with one channel of brightness.
_GREY = ('1', 'L', 'LA', 'I', 'I;16', 'F')
# Below that, looking at all files takes no time worth a bar.
_MANY = 2000


class Pair(NamedTuple):
    """The files of one training example.

    Args:
        img: Low resolution.
        gt: High resolution.
    """

    img: str
    gt: str


def scale_of(generator: dict) -> Optional[int]:
    """How many times a generator enlarges an image, as its config says, or None.

    Args:
        generator: Config of mmagic's generator, or of a LocalBackbone around one.
    """
    generator = generator.get('backbone') or generator
    for key in ('upscale_factor', 'scale_factor', 'upscale'):
        if isinstance(generator.get(key), int):
            return generator[key]
    return None


def pairs_of(dataset: dict, kind: Optional[type]) -> Optional[List[Pair]]:
    """The pairs that mmagic's ``BasicImageDataset`` would read.

    Args:
        dataset: Config of the dataset.
        kind: Its class.

    Returns:
        None where the dataset is of another kind or has no pairs.
    """
    prefix = dataset.get('data_prefix') or {}
    if getattr(kind, '__name__', '') != 'BasicImageDataset' or not {'img', 'gt'} <= set(prefix):
        return None
    settings = {key: value for key, value in dataset.items() if key not in ('type', 'pipeline')}
    # It fills the templates of names in, in place.
    settings['filename_tmpl'] = dict(settings.get('filename_tmpl') or {})
    settings['lazy_init'] = True  # else it fails by itself on an empty folder
    return sorted(
        Pair(info['img_path'], info['gt_path'])
        for info in kind(pipeline=[], **settings).load_data_list()
    )


def check_pairs(dataset: dict, where: str, pairs: Sequence[Pair], generator: dict) -> None:
    """Refuse pairs that a network can't learn from.

    Args:
        dataset: Config of the dataset.
        where: Where it stands in the config.
        pairs: Its files.
        generator: Config of the network.

    Raises:
        LocalLearningError: A file is missing or unreadable, two of a pair don't differ by the
            network's scale, an image is smaller than a training patch, or has another number of
            channels than the network takes. Names the file and how to fix it.
    """
    if not pairs:
        raise LocalLearningError(
            f'{where} holds no image: check data_root and data_prefix, or build pairs with '
            'tools/dataset_converters/build_photo_pairs.py'
        )
    scale = scale_of(generator)
    patch = _setting(dataset, 'PairedRandomCrop', 'gt_patch_size')
    if scale is not None and patch is not None and patch % scale:
        raise LocalLearningError(
            f"{where}: gt_patch_size={patch} cannot be divided by the network's scale {scale}: "
            f'set it to {max(patch // scale, 1) * scale}'
        )
    if not dataset.get('ann_file'):
        _check_partners(where, pairs)
    colour = _setting(dataset, 'LoadImageFromFile', 'color_type') or 'color'
    many = track(pairs, f'Looking at {where}', transient=True) if len(pairs) > _MANY else pairs
    for pair in many:
        (small_width, small_height), mode = _header(pair.img, where, pair)
        (width, height), _ = _header(pair.gt, where, pair)
        ratios = {width / small_width, height / small_height}
        if len(ratios) > 1 or (scale is not None and ratios != {scale}):
            one = f'the network enlarges {scale} times' if scale else 'no scale fits both sides'
            raise LocalLearningError(
                f'{where}: {pair.img} has {small_height}x{small_width} px, {pair.gt} '
                f'{height}x{width}, but {one}: check data_prefix.img and upscale_factor, or build '
                'pairs with tools/dataset_converters/build_photo_pairs.py'
            )
        if patch is not None and min(width, height) < patch:
            raise LocalLearningError(
                f'{where}: {pair.gt} has {height}x{width} px, less than gt_patch_size={patch}: '
                'take smaller patches, or remove the image'
            )
        channels = (generator.get('backbone') or generator).get('in_channels', 3)
        # Read in colour, grey files get three equal channels.
        if colour != 'color' and channels == 3 and mode in _GREY:
            raise LocalLearningError(
                f'{where}: {pair.img} is grey and read with color_type={colour!r}, but the network '
                "takes 3 channels: set color_type='color' in LoadImageFromFile"
            )


def _check_partners(where: str, pairs: Sequence[Pair]) -> None:
    # The folder of small images says what is read: of others' partners nothing would be heard.
    for folder in {os.path.dirname(pair.gt) for pair in pairs}:
        known = {os.path.basename(pair.gt) for pair in pairs if os.path.dirname(pair.gt) == folder}
        suffixes = {os.path.splitext(name)[1] for name in known}
        alone = sorted(
            name
            for name in os.listdir(folder)
            if name not in known and os.path.splitext(name)[1] in suffixes
        )
        if alone:
            raise LocalLearningError(
                f'{where}: {os.path.join(folder, alone[0])} has no low-resolution partner'
                f'{f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""}: put it there, '
                'or list the pairs that are to be read in an ann_file'
            )


def _setting(dataset: dict, step: str, key: str) -> Optional[object]:
    for one in dataset.get('pipeline') or []:
        if isinstance(one, dict) and one.get('type') == step and key in one:
            return one[key]
    return None


def _header(path: str, where: str, pair: Pair) -> Tuple[Tuple[int, int], str]:
    if not os.path.isfile(path):
        other = pair.img if path == pair.gt else pair.gt
        raise LocalLearningError(
            f'{where}: {path} does not exist, the other half of {other}: put it there, remove '
            'that, or check data_prefix and filename_tmpl'
        )
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (OSError, SyntaxError) as error:
        raise LocalLearningError(
            f'{where}: {path} cannot be read as an image, copy it again or remove it'
        ) from error
