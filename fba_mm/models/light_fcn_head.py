"""The decode head of a small segmentor; needs mmseg."""

from typing import Any, Optional, Sequence

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import check_count
from ..pooling import average_pool_to


@MODELS.register_module()
class LightFCNHead(BaseDecodeHead):
    """Adds up maps of some levels, reduced to few channels, and classifies the sum's positions.

    What a segmentor's loss keeps is the logits of all pixels, ``num_classes`` for each, and at 150
    classes that is more than a module of the backbone. The head therefore learns from the label of
    every ``label_stride``-th pixel in every ``label_stride``-th row: the same loss in expectation,
    of a sixteenth of the pixels at 4.

    Args:
        in_channels: Channels of the maps that are read, finest first.
        in_index: Indices of the maps that are read. Unset, all.
        positions_of: Index of the map whose positions are classified: finer ones are pooled to
            them, coarser ones enlarged. Where there are fewer maps it is the last.
        label_stride: One label of so many is learned from, in height and in width.
        norm_cfg: Config of the normalization layers.
        **kwargs: Other arguments of mmseg's ``BaseDecodeHead``.

    Raises:
        LocalLearningError: ``label_stride`` is no number from 1, or ``positions_of`` none from 0.

    Example:
        >>> head = LightFCNHead([16, 32, 64], channels=8, num_classes=3)
        >>> head([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4), torch.rand(2, 64, 4, 4)]).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Optional[Sequence[int]] = None,
        positions_of: int = 1,
        label_stride: int = 4,
        norm_cfg: dict = dict(type='BN'),
        **kwargs: Any,
    ):
        super().__init__(
            in_channels,
            in_index=list(range(len(in_channels)) if in_index is None else in_index),
            input_transform='multiple_select',
            norm_cfg=norm_cfg,
            **kwargs,
        )
        self.label_stride = check_count(
            'label_stride', label_stride, what='a number', fix=', which is every label'
        )
        self.positions_of = check_count('positions_of', positions_of, least=0)
        # Added up before they are normed: it is one convolution of all maps side by side.
        self.reduce = nn.ModuleList(
            nn.Conv2d(width, self.channels, 1, bias=False) for width in in_channels
        )
        self.fuse = ConvModule(
            self.channels, self.channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=self.act_cfg
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, H, W) at the positions of one of the maps.

        Args:
            inputs: All of the backbone's maps, (N, C, H, W) each.
        """
        size = inputs[min(self.positions_of, len(inputs) - 1)].shape[2:]
        maps = [
            self._at(size, inputs[index], reduce)
            for index, reduce in zip(self.in_index, self.reduce)
        ]
        return self.cls_seg(self.fuse(sum(maps[1:], maps[0])))

    def _at(self, size: torch.Size, x: Tensor, reduce: nn.Module) -> Tensor:
        if x.shape[2] > size[0]:
            return reduce(average_pool_to(x, size))  # The order is that of least work.
        x = reduce(x)
        return (
            x
            if x.shape[2:] == size
            else F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)
        )

    def _stack_batch_gt(self, batch_data_samples: list) -> Tensor:
        """The labels of the pixels that are learned from, (N, 1, H, W)."""
        labels = super()._stack_batch_gt(batch_data_samples)
        # From the middle of each cell, where the head's positions lie.
        rows, columns = (
            torch.arange(
                min(self.label_stride // 2, size - 1), size, self.label_stride, device=labels.device
            )
            for size in labels.shape[-2:]
        )
        return labels[..., rows[:, None], columns]
