"""How MobileNetV2, MobileNetV3 and EfficientNet unroll: one segment per inverted residual block."""

from functools import partial
from typing import List, Optional, Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule


class ReducedInvertedResidual(BaseModule):
    """One inverted residual block with a small expansion, to stand in for a whole stage.

    Inside are twice the input's channels, where the networks themselves have up to six times as
    many (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise 3×3 convolution.
        norm_cfg: Config of the normalization layers.
        act_cfg: Config of the activations.
        dilation: Of the depthwise convolution, for stages that are dilated instead of strided.

    Example:
        >>> ReducedInvertedResidual(16, 24, 2)(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='ReLU6'),
        dilation: int = 1,
    ):
        super().__init__()
        width = 2 * in_channels
        conv = partial(ConvModule, norm_cfg=norm_cfg)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.block = nn.Sequential(
            conv(in_channels, width, 1, act_cfg=act_cfg),
            conv(
                width,
                width,
                3,
                stride=stride,
                padding=dilation,
                dilation=dilation,
                groups=width,
                act_cfg=act_cfg,
            ),
            conv(width, out_channels, 1, act_cfg=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return x + self.block(x) if self.has_shortcut else self.block(x)


def _convolutions(module: nn.Module) -> List[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _segment(path: str, stage: int, unused: Sequence[str] = (), **kwargs) -> Segment:
    return Segment(path, partial(run_submodule, path=path), (path, *unused), stage, **kwargs)


def _unrolled(
    backbone: nn.Module,
    layers: Sequence[str],
    act_cfg: dict,
    stem: Optional[str] = None,
    returns_tuple: bool = True,
) -> Unrolled:
    """A segment per block. In a stage, all blocks' maps are alike: in size, channels and dilation.

    Args:
        backbone: The backbone.
        layers: Dotted names of what ``out_indices`` counts: blocks, or sequences of blocks.
        act_cfg: Config of the reduced blocks' activations.
        stem: Dotted name of a convolution before these; unset, the first of them is the stem.
        returns_tuple: See :class:`Unrolled`.
    """
    levels = sorted(backbone.out_indices)
    # Layers after the last level have no part in anything: they belong to its segment, and rest.
    used, unused = layers[: levels[-1] + 1], layers[levels[-1] + 1 :]
    segments = [] if stem is None else [_segment(stem, -1)]
    stage, former = -1, None
    for index, layer in enumerate(used):
        module = backbone.get_submodule(layer)
        blocks = [layer]
        if isinstance(module, nn.Sequential):
            blocks = [f'{layer}.{name}' for name, _ in module.named_children()]
        dilation = max(conv.dilation[0] for conv in _convolutions(module))
        for path in blocks:
            convolutions = _convolutions(backbone.get_submodule(path))
            kind = (convolutions[-1].out_channels, dilation)
            if not segments:
                stage = 0 if 0 in levels else -1
            elif stage < 0 or kind != former or any(c.stride[0] > 1 for c in convolutions):
                stage += 1
            ends = path == blocks[-1]
            level = levels.index(index) if ends and index in levels else None
            segments.append(
                _segment(
                    path,
                    stage,
                    unused if ends and layer == used[-1] else (),
                    level=level,
                    dilation=dilation,
                )
            )
            # What follows a level is a stage of its own.
            former = None if level is not None else kind
    norm_cfg = dict(backbone.norm_cfg, requires_grad=True)
    return Unrolled(
        segments,
        partial(ReducedInvertedResidual, norm_cfg=norm_cfg, act_cfg=act_cfg),
        returns_tuple=returns_tuple,
    )


@backbone_family(
    'mmdet.models.backbones.mobilenet_v2.MobileNetV2',
    'mmpretrain.models.backbones.mobilenet_v2.MobileNetV2',
    'mmseg.models.backbones.mobilenet_v2.MobileNetV2',
)
def unroll_mobilenet_v2(backbone: nn.Module) -> Unrolled:
    """The first convolution, then one segment per block, and the last convolution.

    Args:
        backbone: A ``MobileNetV2`` of mmdet, mmpretrain or mmseg.

    Example:
        >>> unroll_mobilenet_v2(MODELS.build(dict(type='mmdet.MobileNetV2'))).segments[1].name
        'layer1.0'
    """
    # mmseg's returns a single map as it is.
    is_mmseg = type(backbone).forward.__module__.startswith('mmseg.')
    returns_tuple = len(backbone.out_indices) > 1 or not is_mmseg
    return _unrolled(backbone, backbone.layers, backbone.act_cfg, 'conv1', returns_tuple)


@backbone_family(
    'mmpretrain.models.backbones.mobilenet_v3.MobileNetV3',
    'mmseg.models.backbones.mobilenet_v3.MobileNetV3',
)
def unroll_mobilenet_v3(backbone: nn.Module) -> Unrolled:
    """The first convolution, then one segment per block, and the last convolution.

    Args:
        backbone: A ``MobileNetV3`` of mmpretrain or mmseg.
    """
    # Its blocks have several; this is that of the deeper ones.
    return _unrolled(backbone, backbone.layers, dict(type='HSwish'))


@backbone_family(
    'mmdet.models.backbones.efficientnet.EfficientNet',
    'mmpretrain.models.backbones.efficientnet.EfficientNet',
)
def unroll_efficientnet(backbone: nn.Module) -> Unrolled:
    """The first convolution, then one segment per block, and the last convolution.

    Args:
        backbone: An ``EfficientNet`` of mmdet or mmpretrain.
    """
    layers = [f'layers.{index}' for index in range(len(backbone.layers))]
    return _unrolled(backbone, layers, backbone.act_cfg)
