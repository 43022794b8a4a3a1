"""How mmpretrain's VGG and mmdet's SSDVGG unroll: one segment per convolution."""

from functools import partial
from typing import List, Optional, Tuple

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule


def _run_layers(backbone: nn.Module, x: Tensor, paths: Tuple[str, ...]) -> Tensor:
    for path in paths:
        x = run_submodule(backbone, x, path)
    return x


def _classify(backbone: nn.Module, x: Tensor) -> Tensor:
    return backbone.classifier(x.view(x.size(0), -1))


class ReducedConvolution(BaseModule):
    """One convolution with the backbone's norm, and max pooling, to stand in for a whole stage.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Size and stride of the pooling; 1 is without.
        norm_cfg: Config of the normalization layer; None is without.
        ceil_mode: Whether pooling rounds odd sizes up.

    Example:
        >>> ReducedConvolution(64, 128, stride=2)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 128, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_cfg: Optional[dict] = None,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.conv = ConvModule(
            in_channels, out_channels, 3, padding=1, bias=True, norm_cfg=norm_cfg
        )
        self.pool = nn.Identity()
        if stride != 1:
            self.pool = nn.MaxPool2d(stride, stride, ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.pool(self.conv(x))


class PooledClassifier(BaseModule):
    """Global pooling and one linear layer, to stand in for VGG's three large ones.

    Those have over 100 M parameters and fit one size of maps alone.

    Args:
        in_channels: Channels of the map.
        num_classes: Number of classes.

    Example:
        >>> PooledClassifier(512, 10)(torch.rand(2, 512, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__(init_cfg=dict(type='Normal', layer='Linear', std=0.01))
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a map (N, in_channels, H, W)."""
        return self.linear(x.mean((2, 3)))


def _reduced_output(level: int, channels: int, scores: int, num_classes: int) -> nn.Module:
    return PooledClassifier(channels, num_classes) if level == scores else nn.Identity()


@backbone_family('mmpretrain.models.backbones.vgg.VGG')
def unroll_vgg(backbone: nn.Module) -> Unrolled:
    """One segment per convolution, with its norm and activation; a stage's pooling ends it.

    With ``num_classes``, the backbone ends in a classifier, and returns its scores: they are the
    last level, and the classifier is trained with the last module. The other modules then have a
    linear classifier of their own, for the head has no parameters that they could share. Without
    ``num_classes`` and with a ``LinearClsHead``, all modules share that head.

    Args:
        backbone: A ``VGG`` of mmpretrain.

    Raises:
        LocalLearningError: It returns both its scores and the map that they are computed from.

    Example:
        >>> segments = unroll_vgg(MODELS.build(dict(type='mmpretrain.VGG', depth=11))).segments
        >>> segments[0].submodules
        ('features.0', 'features.1')
    """
    last = len(backbone.stage_blocks) - 1
    levels = [stage for stage in range(last + 1) if stage in backbone.out_indices]
    classifies = backbone.num_classes > 0
    if classifies and last in levels:
        raise LocalLearningError(
            f'VGG returns its scores and stage {last}, which they are computed from: leave index '
            f'{last} out of out_indices, or set num_classes=-1 and give the model a head'
        )
    segments = []
    for stage, (start, stop) in enumerate(backbone.range_sub_modules):
        convolutions = start + backbone.stage_blocks[stage]
        for i in range(start, convolutions):
            ends_stage = i == convolutions - 1
            paths = [f'features.{j}' for j in range(i, stop if ends_stage else i + 1)]
            level = levels.index(stage) if ends_stage and stage in levels else None
            run = partial(run_submodule, path=paths[0])
            if len(paths) > 1:
                run = partial(_run_layers, paths=tuple(paths))
            segment = Segment(paths[0], run, tuple(paths), stage, level)
            if classifies and ends_stage and stage == last:
                segment = Segment(
                    paths[0], run, (*paths, 'classifier'), stage, len(levels), _classify
                )
            segments.append(segment)
    first = backbone.features[0]
    norm_cfg = dict(first.norm_cfg, requires_grad=True) if first.with_norm else None
    pools = [m for m in backbone.features if isinstance(m, nn.MaxPool2d)]
    return Unrolled(
        segments,
        partial(
            ReducedConvolution, norm_cfg=norm_cfg, ceil_mode=any(pool.ceil_mode for pool in pools)
        ),
        partial(_reduced_output, scores=len(levels), num_classes=backbone.num_classes)
        if classifies
        else None,
        # The classifier takes 7×7 positions: no other size of image fits it.
        input_shape=(3, 224, 224) if classifies else None,
    )


@backbone_family('mmdet.models.backbones.ssd_vgg.SSDVGG')
def unroll_ssd_vgg(backbone: nn.Module) -> Unrolled:
    """One segment per convolution, with its activation; pooling begins the next stage.

    Args:
        backbone: An ``SSDVGG`` of mmdet.

    Raises:
        LocalLearningError: It returns a map that no activation has made.

    Example:
        >>> [s.name for s in unroll_ssd_vgg(MODELS.build(dict(
        ...     type='mmdet.SSDVGG', depth=16))).segments][:2]
        ['features.0', 'features.2']
    """
    levels = sorted(backbone.out_feature_indices)
    segments: List[Segment] = []
    paths: List[str] = []
    stage = 0
    for i, layer in enumerate(backbone.features):
        paths.append(f'features.{i}')
        if isinstance(layer, nn.MaxPool2d) and segments:
            stage += 1
        if isinstance(layer, nn.ReLU):
            level = levels.index(i) if i in levels else None
            name = next(
                path for path in paths if isinstance(backbone.get_submodule(path), nn.Conv2d)
            )
            segments.append(
                Segment(name, partial(_run_layers, paths=tuple(paths)), tuple(paths), stage, level)
            )
            paths = []
    if [s.level for s in segments if s.level is not None] != list(range(len(levels))):
        raise LocalLearningError(
            f'SSDVGG with out_feature_indices={tuple(levels)} cannot be cut: give indices of '
            'activations, as 22 and 34 of depth 16'
        )
    # Layers after the last activation, pooling, have no part in what is returned.
    pools = [m for m in backbone.features if isinstance(m, nn.MaxPool2d)]
    return Unrolled(
        segments,
        partial(ReducedConvolution, ceil_mode=any(pool.ceil_mode for pool in pools)),
        returns_tuple=len(levels) > 1,
    )
