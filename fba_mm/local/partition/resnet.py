"""How ResNet and its descendants (ResNetV1d, ResNeXt, RegNet, ...) unroll.

mmdet, mmpretrain and mmseg define the same ``forward``: stem, max pooling, ``layer1`` to
``layer4``, each a sequence of residual blocks.
"""

from functools import partial
from typing import Callable

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    if backbone.deep_stem:
        return backbone.maxpool(backbone.stem(x))
    return backbone.maxpool(backbone.relu(backbone.norm1(backbone.conv1(x))))


def _run_stem_of_regnet(backbone: nn.Module, x: Tensor) -> Tensor:
    # Without max pooling: the first stage has a stride of its own.
    return backbone.relu(backbone.norm1(backbone.conv1(x)))


class ReducedResidualBlock(BaseModule):
    """One residual block with fewer channels, to stand in for a whole stage.

    Keeps the kernel sizes and the stride of the block that it is reduced from (the φ of the FBA
    paper's equation 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the 3×3 convolution, and of the shortcut.
        bottleneck: 1×1, 3×3, 1×1 with a quarter of the channels inside, instead of two 3×3.
        norm_cfg: Config of the normalization layers.
        dilation: Of the 3×3 convolutions, for stages that are dilated instead of strided.

    Example:
        >>> ReducedResidualBlock(64, 128, stride=2)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 128, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        bottleneck: bool = False,
        norm_cfg: dict = dict(type='BN'),
        dilation: int = 1,
    ):
        super().__init__()
        conv = partial(ConvModule, norm_cfg=norm_cfg)
        conv3x3 = partial(conv, kernel_size=3, padding=dilation, dilation=dilation)
        if bottleneck:
            width = max(out_channels // 4, 1)
            self.residual = nn.Sequential(
                conv(in_channels, width, 1),
                conv3x3(width, width, stride=stride),
                conv(width, out_channels, 1, act_cfg=None),
            )
        else:
            self.residual = nn.Sequential(
                conv3x3(in_channels, out_channels, stride=stride),
                conv3x3(out_channels, out_channels, act_cfg=None),
            )
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1, stride=stride, act_cfg=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.relu(self.residual(x) + self.shortcut(x))


@backbone_family(
    'mmdet.models.backbones.resnet.ResNet',
    'mmpretrain.models.backbones.resnet.ResNet',
    'mmseg.models.backbones.resnet.ResNet',
)
def unroll_resnet(backbone: nn.Module) -> Unrolled:
    """Stem, then one segment per residual block.

    Args:
        backbone: A ``ResNet`` of mmdet, mmpretrain or mmseg, or a subclass with its ``forward``.

    Raises:
        LocalLearningError: Its blocks pass on several maps.
    """
    if any(kind.__name__ == 'TridentResNet' for kind in type(backbone).__mro__):
        raise LocalLearningError(
            f'backbone {type(backbone).__name__} cannot be cut: its blocks pass on a list of maps, '
            'one for each dilation; use another ResNet, or set num_modules=1 (back-propagation)'
        )
    return _unrolled(backbone, _run_stem)


@backbone_family(
    'mmdet.models.backbones.regnet.RegNet', 'mmpretrain.models.backbones.regnet.RegNet'
)
def unroll_regnet(backbone: nn.Module) -> Unrolled:
    """As ResNet, with another stem.

    Args:
        backbone: A ``RegNet`` of mmdet or mmpretrain.
    """
    return _unrolled(backbone, _run_stem_of_regnet)


def _unrolled(backbone: nn.Module, run_stem: Callable[[nn.Module, Tensor], Tensor]) -> Unrolled:
    stem = ('stem',) if backbone.deep_stem else ('conv1', backbone.norm1_name)
    segments = [Segment('stem', run_stem, stem, stage=-1)]
    levels = sorted(backbone.out_indices)
    dilations = getattr(backbone, 'dilations', None) or (1,) * len(backbone.res_layers)
    for stage, layer_name in enumerate(backbone.res_layers):
        blocks = [name for name, _ in backbone.get_submodule(layer_name).named_children()]
        for block in blocks:
            path = f'{layer_name}.{block}'
            ends_level = block == blocks[-1] and stage in levels
            segments.append(
                Segment(
                    path,
                    partial(run_submodule, path=path),
                    (path,),
                    stage=stage,
                    level=levels.index(stage) if ends_level else None,
                    dilation=dilations[stage],
                )
            )
    # An auxiliary network starts from scratch: its norm layers train even where the pretrained
    # backbone's are frozen.
    norm_cfg = dict(getattr(backbone, 'norm_cfg', None) or dict(type='BN'), requires_grad=True)
    if norm_cfg.get('eps') == 0:  # Of a frozen norm alone: one that trains has to have some.
        del norm_cfg['eps']
    last = backbone.get_submodule(f'{backbone.res_layers[-1]}.0')
    reduced_block = partial(
        ReducedResidualBlock, bottleneck=hasattr(last, 'conv3'), norm_cfg=norm_cfg
    )
    return Unrolled(segments, reduced_block)
