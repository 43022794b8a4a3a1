"""A detection head on the pyramid levels of a module's own stride."""

from typing import Dict, List, Optional, Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_count
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary
from .own_head import build_own_head, check_own_head


@MODELS.register_module()
class OwnLevelNeck(BaseModule):
    """Projects one map, and adds coarser levels.

    1×1 convolution and ReLU; for each further level, ReLU and 3×3 convolution with stride 2 of the
    level before.

    Args:
        in_channels: Channels of the map, in a list of one.
        out_channels: Channels of all levels.
        num_outs: Number of levels.
        init_cfg: Initialization config.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 1,
        init_cfg: Optional[dict] = dict(type='Normal', layer='Conv2d', std=0.01),
    ):
        super().__init__(init_cfg)
        self.project = nn.Sequential(nn.Conv2d(in_channels[0], out_channels, 1), nn.ReLU())
        self.coarser = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1))
            for _ in range(num_outs - 1)
        )

    def forward(self, features: Sequence[Tensor]) -> List[Tensor]:
        """One map, (N, C, H, W), to the levels."""
        levels = [self.project(features[0])]
        for layer in self.coarser:
            levels.append(layer(levels[-1]))
        return levels


@MODELS.register_module()
class OwnLevels(Auxiliary):
    """Predicts, from the module's map alone, the levels of a RetinaNet that have its stride.

    A map of stride 8 predicts P3 (anchors of 32 pixels and up), one of stride 16 P4, and so on; the
    last module that has an auxiliary network predicts the two coarser levels, too, by strided
    convolutions. Behind MAN++ on a ResNet that is cut by stages, these are P3, P4, and P5 to P7.

    Source: the host of MAN++ in detection (Su et al., "MAN++: Scaling Momentum Auxiliary Network
    for Supervised Local Learning in Vision Tasks", TPAMI 2026), in the code released with it:
    no forced match of anchors with less overlap than 0.5, smooth L1, anchors centred on their
    position. Settled here: images without objects have a loss, all background.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        channels: Channels of the levels and the head.
        stacked_convs: Convolutions of each branch of the head before the last one.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``num_classes`` is missing; and see :class:`SLM` for heads that don't
            fit.

    Example:
        >>> auxiliary = dict(type='MAN++', host=dict(type='OwnLevels', num_classes=80))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        channels: int = 256,
        stacked_convs: int = 2,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        check_count(
            'auxiliary.num_classes',
            num_classes,
            what="that of the model's head,",
            fix=", as in dict(type='OwnLevels', num_classes=80)",
        )
        check_count('auxiliary.channels', channels)
        check_count('auxiliary.stacked_convs', stacked_convs, least=0)
        is_last = cut_point.module == cut_point.num_modules - 2
        strides = [cut_point.stride * 2**i for i in range(3 if is_last else 1)]
        self.head = build_own_head(
            dict(
                type='mmdet.RetinaNet',
                neck=dict(type='OwnLevelNeck', out_channels=channels, num_outs=len(strides)),
                bbox_head=dict(
                    type='mmdet.RetinaHead',
                    num_classes=num_classes,
                    in_channels=channels,
                    feat_channels=channels,
                    stacked_convs=stacked_convs,
                    anchor_generator=dict(
                        type='mmdet.AnchorGenerator',
                        octave_base_scale=4,
                        scales_per_octave=3,
                        ratios=[0.5, 1.0, 2.0],
                        strides=strides,
                        center_offset=0.5,
                    ),
                    bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
                    loss_cls=dict(type='SlicedFocalLoss', use_sigmoid=True),
                    loss_bbox=dict(type='mmdet.SmoothL1Loss'),
                ),
                train_cfg=dict(
                    assigner=dict(
                        type='mmdet.MaxIoUAssigner',
                        pos_iou_thr=0.5,
                        neg_iou_thr=0.4,
                        match_low_quality=False,
                        # The default, with its scope: that of the config may be another.
                        iou_calculator=dict(type='mmdet.BboxOverlaps2D'),
                    ),
                    allowed_border=-1,
                    pos_weight=-1,
                ),
            ),
            [cut_point.channels],
            [cut_point.stride],
        )

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The detector's losses on the levels of the module's stride. See :class:`Auxiliary`."""
        return step.head_loss(
            self.head, self.head.backbone, (self.cut_point.as_map(x),), self.loss_weight
        )

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """Compare the classes with the model's, and run the head once on a small map."""
        check_own_head(self.head, [self.cut_point.channels], model, source)
