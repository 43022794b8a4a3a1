"""Faults of segmentation data, found before a network is trained on it."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmengine.dist import get_rank, get_world_size
from PIL import Image
from rich.progress import track

from ..config import type_name
from ..errors import LocalLearningError
from ..method_owner import descends_from

# Pillow's modes with one number for each pixel.
_LABELS = ('1', 'L', 'P', 'I', 'I;16')
# What is read; of files in other formats, as aerial and medical images have them, it is known only
# whether they are there.
_READ = ('.bmp', '.jpeg', '.jpg', '.png')
# EXIF's tag, and its values for a picture that lies on its side.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
# Below that, reading all files takes no time worth a bar.
_MANY = 500


class LabelMap(NamedTuple):
    """The files of one training example.

    Args:
        img: The image.
        seg_map: The label of each of its pixels.
    """

    img: str
    seg_map: str


class Found(NamedTuple):
    """What the files of one training example hold.

    Args:
        fault: What is wrong with them, and how to fix it; None if nothing is.
        labels: Those in the mask, as far as it was read.
    """

    fault: Optional[str]
    labels: Sequence[int] = ()


class Labelled(NamedTuple):
    """What a data set of mmseg would read.

    Args:
        maps: Its files.
        count: How many labels the files may have, from 0.
        ignored: Labels beyond those that are skipped.
        starts_at_one: Whether 0 stands for pixels without a class (``reduce_zero_label``).
        turns_images: Whether images are read as cameras say that they are to be looked at.
    """

    maps: List[LabelMap]
    count: int
    ignored: Tuple[int, ...]
    starts_at_one: bool
    turns_images: bool = True


def is_segmentation(kind: Optional[type]) -> bool:
    """Whether a class is one of mmseg's data sets with a mask for each image.

    Args:
        kind: A data set's class.
    """
    return descends_from(kind, 'BaseSegDataset')


def labelled(dataset: dict, kind: type) -> Optional[Labelled]:
    """The images and masks that a data set would read.

    Args:
        dataset: Its config.
        kind: Its class, for which :func:`is_segmentation` holds.

    Returns:
        None where it reads no masks.
    """
    steps = [type_name(step.get('type')) for step in dataset.get('pipeline') or []]
    if 'LoadAnnotations' not in steps:
        return None
    settings = {
        key: value for key, value in dataset.items() if key not in ('type', 'pipeline', '_scope_')
    }
    settings['lazy_init'] = True  # Listed here, not by it: it would go on to serialize the list.
    built = kind(pipeline=[], **settings)
    found = [
        LabelMap(one['img_path'], one['seg_map_path'])
        for one in built.load_data_list()
        if one.get('seg_map_path')
    ]
    count = len(built.label_map or built.metainfo.get('classes') or ())
    return Labelled(
        found,
        count + bool(built.reduce_zero_label),
        (255, built.ignore_index),
        bool(built.reduce_zero_label),
        turns_images(dataset),
    )


def check_label_maps(dataset: dict, where: str, data: Labelled) -> None:
    """Refuse masks that can't be learned from. Several processes share the reading out.

    Args:
        dataset: Config of the data set.
        where: Where it stands in the config.
        data: From :func:`labelled`.

    Raises:
        LocalLearningError: There are no images, or no classes; a mask or an image is missing or
            unreadable; the two differ in size; a mask is a picture in colours, or has labels beyond
            the classes. Names the first such file, how many there are, and how to fix it. Or all
            masks together have one class and pixels that are skipped.
    """
    prefix = dataset.get('data_prefix')
    if not data.maps and prefix is not None and not prefix.get('seg_map_path'):
        raise LocalLearningError(
            f'{where} has no masks to learn from: set data_prefix.seg_map_path to their folder'
        )
    if not data.maps:
        raise LocalLearningError(
            f'{where} holds no image: check data_root, data_prefix and img_suffix '
            f'({dataset.get("img_suffix", ".jpg")} unless the data set has another)'
        )
    if data.count == data.starts_at_one:
        raise LocalLearningError(
            f'{where}: {type_name(dataset["type"])} has no classes of its own: name those of the '
            'data as metainfo=dict(classes=(...), palette=[...])'
        )
    _check_variety(where, look_at_all(where, data.maps, lambda files: _look_at(files, data)), data)


def look_at_all(where: str, examples: Sequence[Any], look_at: Callable[[Any], Any]) -> list:
    """Look at the files of all training examples, or of this process's share of them.

    Args:
        where: Where the data set stands in the config.
        examples: The files of each.
        look_at: Tells what is found in them; its ``fault`` is None if nothing is wrong.

    Returns:
        What was found, in order.

    Raises:
        LocalLearningError: Names the first fault, and how many more there are.
    """
    own = examples[get_rank() :: get_world_size()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found: Iterable[Any] = pool.map(look_at, own)
        if len(own) > _MANY:
            found = track(found, f'Reading {where}', len(own), transient=True)
        found = list(found)
    faults = [one.fault for one in found if one.fault is not None]
    if faults:
        others = f' ({len(faults) - 1} more files have faults)' if len(faults) > 1 else ''
        raise LocalLearningError(f'{where}: {faults[0]}{others}')
    return found


def size_as_read(path: str, turns: bool) -> Tuple[int, int]:
    """(width, height) of an image file.

    Args:
        path: The file.
        turns: Whether it is read as cameras say that it is to be looked at.
    """
    with Image.open(path) as image:
        turned = turns and image.getexif().get(_ORIENTATION, 1) in _TURNED
        return image.size[::-1] if turned else image.size


def turns_images(dataset: dict) -> bool:
    """Whether a data set's pipeline reads images as cameras say that they are to be looked at.

    Args:
        dataset: Its config.
    """
    return not any(
        str(step.get('color_type', '')).endswith('_ignore_orientation')
        for step in dataset.get('pipeline') or []
    )


def _check_variety(where: str, found: List[Found], data: Labelled) -> None:
    """Refuse masks in which all but one class are skipped, as in pictures of 0 and 255."""
    labels = {label for one in found for label in one.labels}
    passed_over = set(data.ignored) | ({0} if data.starts_at_one else set())
    if not labels & set(data.ignored) or data.count - data.starts_at_one < 2:
        return
    # This process has seen a part of the masks. The others have more to say, if need be.
    rest = (_look_at(files, data).labels for files in data.maps if get_world_size() > 1)
    while len(labels - passed_over) < 2:
        more = next(rest, None)
        if more is None:
            left = labels - passed_over
            only = f'label {min(left)} alone' if left else 'no label'
            ignored = ', '.join(map(str, sorted(labels & passed_over)))
            raise LocalLearningError(
                f'{where}: apart from {ignored}, which training passes over, all masks together '
                f'have {only}: number the {data.count} classes from 0 in the masks, such as '
                f'{data.maps[0].seg_map}, with 1 in the place of 255'
            )
        labels.update(more)


def _look_at(files: LabelMap, data: Labelled) -> Found:
    labels: List[int] = []
    return Found(_fault(files, data, labels), labels)


def _fault(files: LabelMap, data: Labelled, labels: List[int]) -> Optional[str]:
    """What is wrong with an example's files; fills in the labels."""
    if not os.path.isfile(files.img):
        return f'{files.img} does not exist: put it there, or take it out of ann_file'
    if not os.path.isfile(files.seg_map):
        made = (
            "mmseg's tools/dataset_converters/cityscapes.py makes it"
            if files.seg_map.endswith('labelTrainIds.png')
            else 'put it there'
        )
        return (
            f'{files.seg_map} does not exist, the mask of {files.img}: {made}, or check '
            'data_prefix.seg_map_path and seg_map_suffix'
        )
    if not files.seg_map.lower().endswith(_READ):
        return None
    try:
        size = None
        if files.img.lower().endswith(_READ):
            size = size_as_read(files.img, data.turns_images)
        with Image.open(files.seg_map) as mask:
            if mask.mode not in _LABELS:
                return (
                    f'{files.seg_map} is a picture in colours ({mask.mode}), not one label for '
                    'each pixel: convert it to labels'
                )
            labels.extend(_labels_in(mask))
            mask_size = mask.size
    except (OSError, SyntaxError, ValueError) as error:
        return f'{files.img} and {files.seg_map} cannot be read ({error}): copy them again'
    if size not in (None, mask_size):
        return (
            f'{files.seg_map} has {mask_size[1]}x{mask_size[0]} px, {files.img} '
            f'{size[1]}x{size[0]}: they are to be of one size'
        )
    unknown = [label for label in labels if label >= data.count and label not in data.ignored]
    if unknown:
        fix = 'fix the mask, or name all classes of the data as metainfo=dict(classes=(...))'
        if max(unknown) == data.count and not data.starts_at_one:
            fix = f'set reduce_zero_label=True if 0 stands for pixels without a class, or {fix}'
        return (
            f'{files.seg_map} has label {unknown[0]}, but the classes are 0 to '
            f'{data.count - 1}, and 255 is skipped: {fix}'
        )
    return None


def _labels_in(mask: Image.Image) -> List[int]:
    if mask.mode in ('L', 'P'):
        return [label for label, pixels in enumerate(mask.histogram()) if pixels]
    return np.unique(np.asarray(mask)).astype(int).tolist()
