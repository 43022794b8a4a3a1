"""A head for as many classes as the data has."""

from mmengine.config import Config
from torch import nn

from ..tasks import task_of_model
from .data import dataset_class, datasets_of


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
    task = task_of_model(model)
    for dataset, where in datasets_of(cfg, splits):
        task.check_classes(dataset, dataset_class(dataset, cfg), where, model)
