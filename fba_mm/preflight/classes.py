"""A head for as many classes as the data has."""

from typing import Sequence

from mmengine.config import Config
from torch import nn

from ..errors import LocalLearningError
from ..local.auxiliary.base import num_classes_of
from .class_count import class_counts, greatest_label
from .data import dataset_class, datasets_of, is_voc_folder
from .label_maps import check_head_classes, is_segmentation


def check_classes(cfg: Config, model: nn.Module, *splits: str) -> None:
    """Refuse a head that is made for another number of classes than the data has.

    Image classifiers and segmentors are asked, and detectors that learn from folders in PASCAL
    VOC's form. Those that learn from files in COCO's form may have heads for more classes than the
    data has, which is common, but not for fewer.

    Args:
        cfg: The config.
        model: Its model.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are skipped.

    Raises:
        LocalLearningError: Names both numbers and how to fix it.
    """
    _check_detector_classes(cfg, model, splits)
    for dataset, where in datasets_of(cfg, splits):
        kind = dataset_class(dataset, cfg)
        if is_segmentation(kind):
            check_head_classes(where, list(class_counts(dataset, kind)), model)
    expected = getattr(getattr(model, 'head', None), 'num_classes', None)
    is_classifier = any(kind.__name__ == 'ImageClassifier' for kind in type(model).__mro__)
    if not is_classifier or not isinstance(expected, int):
        return
    for dataset, where in datasets_of(cfg, splits):
        for count, what in class_counts(dataset, dataset_class(dataset, cfg)):
            if count != expected:
                raise LocalLearningError(
                    f'{where}: {what}, but model.head.num_classes={expected}: set that to {count}, '
                    'in the auxiliary networks too, or give other data'
                )
        label = greatest_label(dataset)
        if label is not None and label >= expected:
            raise LocalLearningError(
                f'{where}.ann_file has labels up to {label}, but model.head.num_classes='
                f'{expected}: labels count from 0, fix the file or set num_classes={label + 1}'
            )


def _check_detector_classes(cfg: Config, model: nn.Module, splits: Sequence[str]) -> None:
    expected = num_classes_of(model, skip=getattr(model, 'backbone', None))
    # A region proposal network alone has one class for all objects.
    if expected is None or any(base.__name__ == 'RPN' for base in type(model).__mro__):
        return
    for dataset, where in datasets_of(cfg, splits):
        kind = dataset_class(dataset, cfg)
        bases = {base.__name__ for base in getattr(kind, '__mro__', ())}
        at_least = 'CocoDataset' in bases and 'CocoPanopticDataset' not in bases
        if not at_least and not is_voc_folder(kind):
            continue
        for count, what in class_counts(dataset, kind):
            if count > expected or not at_least and count < expected:
                raise LocalLearningError(
                    f'{where}: {what}, but the head predicts {expected}: set its num_classes='
                    f"{count}, in the auxiliary networks too, or name the head's classes as "
                    'metainfo=dict(classes=(...))'
                )
