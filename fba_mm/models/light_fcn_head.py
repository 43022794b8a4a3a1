"""The decode head of a small segmentor; needs mmseg."""
from typing import Any, Sequence

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import LocalLearningError


@MODELS.register_module()
class LightFCNHead(BaseDecodeHead):
    """Adds up maps of all levels, reduced to few channels, and classifies their positions.

    What a segmentor's loss keeps is the logits of all pixels, ``num_classes`` for each, and at 150
    classes that is more than a module of the backbone. The head therefore learns from the label of
    every ``label_stride``-th pixel in every ``label_stride``-th row: the same loss in expectation,
    of a sixteenth of the pixels at 4.

    Args:
        in_channels: Channels of the maps, finest first.
        label_stride: One label of so many is learned from, in height and in width.
        norm_cfg: Config of the normalization layers.
        **kwargs: Other arguments of mmseg's ``BaseDecodeHead``.

    Raises:
        LocalLearningError: ``label_stride`` is no number from 1.

    Example:
        >>> head = LightFCNHead([16, 32], in_index=[0, 1], channels=8, num_classes=3)
        >>> head([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self,
                 in_channels: Sequence[int],
                 label_stride: int = 4,
                 norm_cfg: dict = dict(type='BN'),
                 **kwargs: Any):
        super().__init__(
            in_channels, input_transform='multiple_select', norm_cfg=norm_cfg, **kwargs)
        if isinstance(label_stride, bool) or not isinstance(label_stride, int) or label_stride < 1:
            raise LocalLearningError(
                f'label_stride={label_stride!r}: give a number from 1, which is every label')
        self.label_stride = label_stride
        # Added up before they are normed: it is one convolution of all maps side by side.
        self.reduce = nn.ModuleList(
            nn.Conv2d(width, self.channels, 1, bias=False) for width in in_channels)
        self.fuse = ConvModule(
            self.channels, self.channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=self.act_cfg)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, H, W) at the positions of the finest map that is looked at.

        Args:
            inputs: All maps of the backbone, (N, C, H, W) each.
        """
        first, *others = [reduce(x) for reduce, x in zip(self.reduce, self._transform_inputs(inputs))]
        for x in others:
            if x.shape[2:] != first.shape[2:]:
                x = F.interpolate(
                    x, first.shape[2:], mode='bilinear', align_corners=self.align_corners)
            first = first + x
        return self.cls_seg(self.fuse(first))

    def _stack_batch_gt(self, batch_data_samples: list) -> Tensor:
        """The labels of the pixels that are learned from, (N, 1, H, W)."""
        labels = super()._stack_batch_gt(batch_data_samples)
        # From the middle of each cell, where the head's positions lie.
        rows, columns = (
            torch.arange(min(self.label_stride // 2, size - 1), size, self.label_stride,
                         device=labels.device) for size in labels.shape[-2:])
        return labels[..., rows[:, None], columns]
