"""How many classes a classification data set has, as far as its config and folders tell."""

import os
from typing import Iterator, List, Optional, Tuple

from ..config import type_name


def class_counts(dataset: dict, kind: Optional[type]) -> Iterator[Tuple[int, str]]:
    """Count the classes of a data set without building it.

    Args:
        dataset: Its config.
        kind: Its class, None if unknown.

    Yields:
        A number and where it was found, in words, for each place that tells one.

    Example:
        >>> from mmpretrain.datasets import CIFAR10
        >>> list(class_counts(dict(type='CIFAR10'), CIFAR10))
        [(10, 'CIFAR10 has 10 classes')]
    """
    name = type_name(dataset.get('type')) or 'the data set'
    names = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    own = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if names:
        names = _lines(names) if isinstance(names, str) else names
        yield len(names), f'its metainfo names {len(names)} classes'
    elif own:
        yield len(own), f'{name} has {len(own)} classes'
    # The one class of mmpretrain that takes its classes from the folders that it finds.
    if name == 'CustomDataset' and not dataset.get('ann_file') and dataset.get('with_label', True):
        folder = _image_folder(dataset)
        if os.path.isdir(folder):
            count = sum(entry.is_dir() for entry in os.scandir(folder))
            yield count, f'{folder} has {count} folders, one per class'


def greatest_label(dataset: dict) -> Optional[int]:
    """The greatest label in an annotation file with lines of ``path label``.

    Args:
        dataset: The data set's config.

    Returns:
        None if there is no such file.
    """
    ann_file = dataset.get('ann_file')
    if not isinstance(ann_file, str) or not ann_file or ann_file.endswith('.json'):
        return None
    path = os.path.join(dataset.get('data_root') or '', ann_file)
    labels = [line.rpartition(' ')[2] for line in _lines(path) if ' ' in line.strip()]
    if not labels or not all(label.isdigit() for label in labels):
        return None
    return max(map(int, labels))


def _image_folder(dataset: dict) -> str:
    prefix = dataset.get('data_prefix') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    return os.path.join(dataset.get('data_root') or '', prefix)


def _lines(path: str) -> List[str]:
    try:
        with open(path, encoding='utf-8') as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, ValueError):
        return []
