"""How many classes a classification data set has, as far as its config and folders tell."""
import os
from typing import NamedTuple, Optional

from ..config import type_name


class ClassCount(NamedTuple):
    """What was found.

    Args:
        count: Number of classes; None if that can't be told.
        what: Where it was found, in words.
        count_in_labels: Greatest label in an annotation file plus one; 0 if there is none.
    """
    count: Optional[int]
    what: str = ''
    count_in_labels: int = 0


def count_classes(dataset: dict, kind: Optional[type]) -> Optional[ClassCount]:
    """Count the classes of a data set without building it.

    Args:
        dataset: Its config.
        kind: Its class, None if unknown.

    Returns:
        None if nothing can be told.

    Example:
        >>> count_classes(dict(type='CIFAR10'), CIFAR10)
        ClassCount(count=10, what='CIFAR10 has 10 classes', count_in_labels=0)
    """
    name = type_name(dataset.get('type'))
    given = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if isinstance(given, str):
        given = _lines(given)
    if given:
        return ClassCount(len(given), f'its metainfo names {len(given)} classes', _labels(dataset))
    if name == 'CustomDataset' and not dataset.get('ann_file'):
        folder = _image_folder(dataset)
        if dataset.get('with_label', True) and os.path.isdir(folder):
            count = sum(entry.is_dir() for entry in os.scandir(folder))
            return ClassCount(count, f'{folder} has {count} folders, one per class')
    own = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if own:
        return ClassCount(len(own), f'{name} has {len(own)} classes', _labels(dataset))
    return ClassCount(None, count_in_labels=_labels(dataset)) if _labels(dataset) else None


def _image_folder(dataset: dict) -> str:
    prefix = dataset.get('data_prefix') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    return os.path.join(dataset.get('data_root') or '', prefix)


def _labels(dataset: dict) -> int:
    """Greatest label plus one in an annotation file with lines of ``path label``, else 0."""
    ann_file = dataset.get('ann_file')
    if not isinstance(ann_file, str) or not ann_file or ann_file.endswith('.json'):
        return 0
    words = [line.split() for line in _lines(os.path.join(dataset.get('data_root') or '', ann_file))]
    numbers = [line[-1] for line in words if len(line) > 1]
    return max(map(int, numbers), default=-1) + 1 if all(n.isdigit() for n in numbers) else 0


def _lines(path: str) -> list:
    try:
        with open(path, encoding='utf-8') as file:
            return file.read().splitlines()
    except (OSError, ValueError):
        return []
