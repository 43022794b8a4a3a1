"""How mmdet's Darknet, CSPDarknet and CSPNeXt unroll."""

from functools import partial
from typing import List, Sequence, Tuple

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule


class ReducedConvolutions(BaseModule):
    """One 3×3 convolution, and a residual of two, to stand in for a whole stage.

    Inside the residual are a quarter of the channels.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
        norm_cfg: Config of the normalization layers.
        act_cfg: Config of the activations.

    Example:
        >>> ReducedConvolutions(64, 128, 2)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 128, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='LeakyReLU', negative_slope=0.1),
    ):
        super().__init__()
        conv = partial(ConvModule, norm_cfg=norm_cfg, act_cfg=act_cfg)
        width = max(out_channels // 4, 1)
        self.conv = conv(in_channels, out_channels, 3, stride=stride, padding=1)
        self.residual = nn.Sequential(
            conv(out_channels, width, 1), conv(width, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        x = self.conv(x)
        return x + self.residual(x)


def _run_layers(backbone: nn.Module, x: Tensor, paths: Tuple[str, ...]) -> Tensor:
    for path in paths:
        x = run_submodule(backbone, x, path)
    return x


def _segments(backbone: nn.Module, layers: Sequence[str], first_stage: int) -> List[Segment]:
    """One segment per layer of each stage; a stage's 3×3 convolution is with what follows it.

    Args:
        backbone: The backbone.
        layers: Names of its stages, in order, as ``out_indices`` counts them.
        first_stage: Index of the first one; -1 counts it as the stem.
    """
    levels = sorted(backbone.out_indices)
    segments = []
    for index, layer in enumerate(layers):
        stage = first_stage + index
        names = [name for name, _ in backbone.get_submodule(layer).named_children()]
        # The stem is one segment, whatever it consists of; it may be returned.
        if index == 0:
            groups = [(layer,)]
        else:
            paths = [f'{layer}.{name}' for name in names]
            groups = [tuple(paths[:2]), *((path,) for path in paths[2:])]
        for group in groups:
            run = (
                partial(run_submodule, path=group[0])
                if len(group) == 1
                else partial(_run_layers, paths=group)
            )
            level = levels.index(index) if group is groups[-1] and index in levels else None
            segments.append(Segment(group[0], run, group, stage, level))
    return segments


def _unrolled(backbone: nn.Module, layers: Sequence[str]) -> Unrolled:
    # Level 0 is the stem's map: a stage of its own where it is returned.
    segments = _segments(backbone, layers, 0 if 0 in backbone.out_indices else -1)
    conv = next(m for m in backbone.modules() if isinstance(m, ConvModule))
    norm_cfg = conv.norm_cfg and dict(conv.norm_cfg, requires_grad=True)
    act_cfg = _activation(conv)
    return Unrolled(segments, partial(ReducedConvolutions, norm_cfg=norm_cfg, act_cfg=act_cfg))


def _activation(conv: ConvModule) -> dict:
    """Config of a block's activation, which the block itself doesn't keep."""
    activate = conv.activate
    if isinstance(activate, nn.LeakyReLU):
        return dict(type='LeakyReLU', negative_slope=activate.negative_slope)
    return dict(type=type(activate).__name__)


@backbone_family('mmdet.models.backbones.darknet.Darknet')
def unroll_darknet(backbone: nn.Module) -> Unrolled:
    """The first convolution, then one segment per residual block.

    Args:
        backbone: A ``Darknet`` of mmdet.

    Example:
        >>> unroll_darknet(MODELS.build(dict(type='mmdet.Darknet', depth=53))).segments[1].name
        'conv_res_block1.conv'
    """
    return _unrolled(backbone, backbone.cr_blocks)


@backbone_family('mmdet.models.backbones.csp_darknet.CSPDarknet')
def unroll_csp_darknet(backbone: nn.Module) -> Unrolled:
    """The stem, then a stage's convolution with the layer after it, and what follows.

    Args:
        backbone: A ``CSPDarknet`` of mmdet or mmpretrain.
    """
    return _unrolled(backbone, backbone.layers)


@backbone_family('mmdet.models.backbones.cspnext.CSPNeXt')
def unroll_cspnext(backbone: nn.Module) -> Unrolled:
    """As CSPDarknet.

    Args:
        backbone: A ``CSPNeXt`` of mmdet.
    """
    return _unrolled(backbone, backbone.layers)
