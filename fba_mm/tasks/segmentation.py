"""Semantic segmentation, by mmseg."""

import copy
from typing import Any, Iterator, Mapping, Optional, Tuple

import torch
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from ..arguments import is_count
from ..config import class_of, type_name
from ..datasets.class_count import class_counts
from ..datasets.label_maps import check_label_maps, is_segmentation, labelled
from ..errors import LocalLearningError
from ..method_owner import is_method_of, method_owner
from .task import Size, Task, num_classes_of, own_classes, register_task

# What a light segmentor takes over from the model's decode head: what is a label, and its loss.
_LABELS = (
    'num_classes',
    'out_channels',
    'threshold',
    'ignore_index',
    'align_corners',
    'loss_decode',
)
# Channels of a light segmentor: the decode head's divided by this, and no fewer than these. Twice
# as many learned more on digit masks (one seed), and cost FCN-R50 1 to 2 % of its operations.
_DIVISOR, _LEAST_CHANNELS = 4, 64
# Settings of mmseg's cross entropy with which a stripe of rows doesn't tell its part of the loss.
_WITHOUT_STRIPES = ('use_sigmoid', 'use_mask', 'class_weight')


@register_task
class Segmentation(Task):
    """One class for each pixel."""

    name = 'segmentation'
    example = 'a segmentor of mmseg'
    models = ('BaseSegmentor',)
    heads = ('light', 'shared')
    known_costs = dict(
        light='FCN-R18 from scratch: -1 (K=2) to -3 mIoU (K=4) at equal epochs, 0 with '
        '--exact-from 0.7 (K=4)'
    )

    def describes(self, cfg: Mapping) -> bool:
        """Whether the model has a decode head."""
        return 'decode_head' in cfg['model']

    def default_auxiliary(self, model: dict) -> str:
        """``'light'``, but for heads that don't tell their classes."""
        return 'shared' if self.light_head(model) is None else 'light'

    def light_head(self, model: dict) -> Optional[dict]:
        """A small FCN for the same labels. See :class:`Task`."""
        head = last_decode_head(model)
        labels = {key: copy.deepcopy(head[key]) for key in _LABELS if head.get(key) is not None}
        if not isinstance(labels.get('loss_decode', {}), dict):
            del labels['loss_decode']  # Several may ask for several outputs.
        if 'num_classes' not in labels:
            return None
        own: Any = head.get('channels')
        channels = own // _DIVISOR if is_count(own) else 0
        width = dict(channels=channels) if channels > _LEAST_CHANNELS else {}
        return dict(type='LightFCN', **width, **labels)

    def computes_in_slices(self, part: dict, package: str) -> bool:
        """Decode heads with plain softmax cross entropy. See :class:`Task`."""
        if package != 'mmseg' or 'num_classes' not in part or part.get('sampler'):
            return False
        losses = part.get('loss_decode') or dict(type='CrossEntropyLoss')
        losses = losses if isinstance(losses, (list, tuple)) else [losses]
        if any(
            type_name(loss.get('type')) != 'CrossEntropyLoss'
            or any(loss.get(key) for key in _WITHOUT_STRIPES)
            or loss.get('reduction', 'mean') != 'mean'
            for loss in losses
        ):
            return False
        owner = method_owner(class_of(part, package), 'loss_by_feat')
        return owner.__name__ == 'BaseDecodeHead'

    def loss_is_image_mean(self, model: nn.Module) -> bool:
        """Plain cross entropy of all heads, over all pixels. See :class:`Task`."""
        heads = [m for m in model.children() if hasattr(m, 'loss_decode')]
        heads += [m for c in model.children() if isinstance(c, nn.ModuleList) for m in c]
        return is_method_of(model, 'loss', ('mmseg',), ('EncoderDecoder',)) and all(
            has_plain_loss(head)
            and not any(getattr(m, 'avg_non_ignore', False) for m in head.modules())
            for head in heads
        )

    def synthetic_target(
        self, model: nn.Module, size: Size, generator: torch.Generator
    ) -> BaseDataElement:
        """A mask. See :class:`Task`."""
        classes = max(num_classes_of(model) or 1, 1)
        labels = torch.randint(0, classes, (1, *size), generator=generator)
        sample = pixel_sample(model, size)
        return sample.set_data(dict(gt_sem_seg=PixelData(data=labels))) or sample

    def check_dataset(self, dataset: dict, kind: Optional[type], where: str, model: dict) -> None:
        """Look at all images and masks of mmseg's data sets. See :class:`Task`."""
        if kind is None or not is_segmentation(kind):
            return
        data = labelled(dataset, kind)
        if data is not None:
            check_label_maps(dataset, where, data)

    def check_classes(
        self, dataset: dict, kind: Optional[type], where: str, model: nn.Module
    ) -> None:
        """Compare all heads with the data set's names. See :class:`Task`."""
        if not is_segmentation(kind):
            return
        for count, what in class_counts(dataset, kind):
            for name, classes in _heads_of(model):
                if classes != count:
                    raise LocalLearningError(
                        f'{where}: {what}, but model.{name}.num_classes={classes}: set that '
                        f'to {count}, in all heads and in the auxiliary networks too, or give '
                        'other data'
                    )


def has_plain_loss(head: Any) -> bool:
    """Whether a head of mmseg has BaseDecodeHead's loss on softmax cross entropy alone.

    Args:
        head: A decode head.
    """
    owner = method_owner(type(head), 'loss_by_feat')
    losses = getattr(head, 'loss_decode', None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return (
        owner.__name__ in ('BaseDecodeHead', '_StripedDecodeHead')
        and head.sampler is None
        and all(
            type(loss).__name__ == 'CrossEntropyLoss'
            and type(loss).__module__.startswith('mmseg.')
            and not (loss.use_sigmoid or loss.use_mask)
            and loss.class_weight is None
            and loss.reduction == 'mean'
            for loss in losses
        )
    )


def last_decode_head(model: dict) -> dict:
    """The config of the head of a segmentor that makes the prediction: of a cascade's, the last.

    Args:
        model: The segmentor's config.
    """
    heads = model['decode_head']
    return heads if isinstance(heads, dict) else heads[-1]


def pixel_sample(model: nn.Module, size: Size) -> BaseDataElement:
    """A data sample of mmseg's without a target, for a model that is told not to pad its image.

    Args:
        model: A model of mmseg. Its preprocessor would pad images to the size of the config's
            crops.
        size: (height, width).
    """
    from mmseg.structures import SegDataSample

    preprocessor: Any = model.data_preprocessor
    preprocessor.size, preprocessor.size_divisor = size, None
    return SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, img_path=''))


def _heads_of(model: nn.Module) -> Iterator[Tuple[str, int]]:
    """The heads of a segmentor by name, and the classes that they tell apart.

    Those with one output for all classes, as those that learn edges, are left out, but for the
    decode head.
    """
    for name in ('decode_head', 'auxiliary_head'):
        found = getattr(model, name, None)
        heads = found if isinstance(found, nn.ModuleList) else [found]
        for i, head in enumerate(heads):
            classes = own_classes(head)
            if classes is not None and (
                name == 'decode_head' or getattr(head, 'out_channels', classes) == classes
            ):
                yield f'{name}.{i}' if isinstance(found, nn.ModuleList) else name, classes
