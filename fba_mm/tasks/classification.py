"""Image classification, by mmpretrain."""

from typing import Any, Mapping, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from ..datasets.class_count import class_counts, greatest_label
from ..errors import LocalLearningError
from ..method_owner import is_method_of
from .task import Size, Task, is_mean_loss, num_classes_of, own_classes, register_task


def classes_of(model: Any) -> Optional[int]:
    """The classes of an image classifier's head, or None of any other model.

    Args:
        model: A model.
    """
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        return None
    return own_classes(getattr(model, 'head', None))


@register_task
class Classification(Task):
    """One class for each image."""

    name = 'classification'
    example = 'an image classifier of mmpretrain'
    models = ('BaseClassifier',)
    heads = ('own',)
    known_costs = dict(own='ResNet from scratch, not tuned: -1 to -5 points at equal epochs')
    shared_head_advice = (
        "All modules learn from the classifier's one head, which teaches them far less than "
        "heads of their own: set model.backbone.auxiliary=dict(type='SLM', head=dict("
        "type='ImageClassifier', neck=_base_.model.neck, head=_base_.model.head)), as --local "
        'does'
    )

    def describes(self, cfg: Mapping) -> bool:
        """Whether the model's head, or one of several for a task each, tells classes apart."""
        head = cfg['model'].get('head')
        return isinstance(head, dict) and bool(num_classes_of(head))

    def default_auxiliary(self, model: dict) -> str:
        """``'own'``: modules learn far less from a head that they share."""
        return 'own'

    def loss_is_image_mean(self, model: nn.Module) -> bool:
        """Cross entropy. See :class:`Task`."""
        head = getattr(model, 'head', None)
        return (
            is_method_of(model, 'loss', ('mmpretrain',), ('ImageClassifier',))
            and is_method_of(head, 'loss', ('mmpretrain',), ('ClsHead',))
            and is_mean_loss(
                getattr(head, 'loss_module', None),
                'mmpretrain',
                'CrossEntropyLoss',
                'LabelSmoothLoss',
            )
        )

    def synthetic_target(
        self, model: nn.Module, size: Size, generator: torch.Generator
    ) -> BaseDataElement:
        """A class. See :class:`Task`."""
        from mmpretrain.structures import DataSample

        # Some backbones end in the classifier themselves.
        classes = max(num_classes_of(model) or 1, 1)
        label = int(torch.randint(0, classes, (), generator=generator))
        return DataSample(metainfo=dict(img_shape=size, ori_shape=size)).set_gt_label(label)

    def check_classes(
        self, dataset: dict, kind: Optional[type], where: str, model: nn.Module
    ) -> None:
        """Compare the head with the data set's names, folders and labels. See :class:`Task`."""
        expected = own_classes(getattr(model, 'head', None))
        if expected is None:
            return
        for count, what in class_counts(dataset, kind):
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
