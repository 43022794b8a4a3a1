"""How mmpretrain's ConvNeXt, version 1 and 2, unrolls."""

from copy import deepcopy
from functools import partial
from typing import Callable

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule


def _run_block(backbone: nn.Module, x: Tensor, path: str, downsample: str) -> Tensor:
    return run_submodule(backbone, run_submodule(backbone, x, downsample), path)


def _normed(backbone: nn.Module, x: Tensor, stage: int) -> Tensor:
    return _pool_and_norm(x, getattr(backbone, f'norm{stage}'), backbone.gap_before_final_norm)


def _pool_and_norm(x: Tensor, norm: nn.Module, pool: bool) -> Tensor:
    return norm(x.mean([-2, -1], keepdim=True)).flatten(1) if pool else norm(x)


class ReducedConvNeXtBlock(BaseModule):
    """One ConvNeXt block to stand in for a whole stage, and its downsampling.

    It has the block's depthwise convolution, and a quarter of the channels between the pointwise
    ones, which hold most of the activations and parameters. It has neither layer scale nor
    stochastic depth: both are for deep stacks, and layer scale's small first value would let a
    single block start as the identity.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride and kernel size of the convolution between stages.
        block: Class of the backbone's blocks.
        norm: ``norm(channels) -> nn.Module``, a norm layer like theirs.
        act: Their activation.
        mlp_ratio: Channels between their pointwise convolutions over those outside.
        **kwargs: Other arguments of ``block``.

    Example:
        >>> block = unroll(MODELS.build(dict(type='mmpretrain.ConvNeXt'))).reduced_block(32, 64, 2)
        >>> block(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        block: type,
        norm: Callable[[int], nn.Module],
        act: nn.Module,
        mlp_ratio: float,
        **kwargs,
    ):
        super().__init__(
            init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0)
        )
        self.downsample = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                norm(in_channels),
                nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride),
            )
        self.block = block(
            in_channels=out_channels, mlp_ratio=mlp_ratio / 4, layer_scale_init_value=0.0, **kwargs
        )
        self.block.norm = norm(out_channels)
        self.block.act = deepcopy(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.block(self.downsample(x))


class NormedLevel(BaseModule):
    """The norm, after global pooling or not, that the backbone gives its outputs alone.

    Args:
        channels: Channels of the map.
        pool: Whether to pool first.
        norm: ``norm(channels) -> nn.Module``.

    Example:
        >>> from mmpretrain.models.utils import LayerNorm2d
        >>> NormedLevel(64, True, LayerNorm2d)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64])
    """

    def __init__(self, channels: int, pool: bool, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm = norm(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Make (N, C, H, W), or (N, C) with pooling, of a map (N, C, H, W)."""
        return _pool_and_norm(x, self.norm, self.pool)


def _reduced_output(
    level: int, channels: int, pool: bool, norm: Callable[[int], nn.Module]
) -> nn.Module:
    return NormedLevel(channels, pool, norm)


@backbone_family('mmpretrain.models.backbones.convnext.ConvNeXt')
def unroll_convnext(backbone: nn.Module) -> Unrolled:
    """Stem, then one segment per block; the downsampling before a stage is with its first block.

    The norms of the levels that the backbone returns are no part of what flows on: each is trained
    by the module that ends with its stage.

    Args:
        backbone: A ``ConvNeXt`` of mmpretrain.

    Raises:
        LocalLearningError: Its norm is no ``LN2d``.

    Example:
        >>> [s.name for s in unroll_convnext(MODELS.build(dict(
        ...     type='mmpretrain.ConvNeXt', arch='tiny'))).segments][:3]
        ['stem', 'stages.0.0', 'stages.0.1']
    """
    last = backbone.stages[-1][-1]
    if not isinstance(last.norm, nn.LayerNorm):
        raise LocalLearningError(
            f'ConvNeXt with {type(last.norm).__name__} in its blocks cannot be cut: set '
            "norm_cfg=dict(type='LN2d', eps=1e-6)"
        )
    levels = sorted(backbone.out_indices)
    stem = 'downsample_layers.0'
    segments = [Segment('stem', partial(run_submodule, path=stem), (stem,), stage=-1)]
    for stage, blocks in enumerate(backbone.stages):
        for i in range(len(blocks)):
            path = f'stages.{stage}.{i}'
            run, used = partial(run_submodule, path=path), (path,)
            if i == 0 and stage > 0:
                downsample = f'downsample_layers.{stage}'
                run = partial(_run_block, path=path, downsample=downsample)
                used = (downsample, path)
            if i == len(blocks) - 1 and stage in levels:
                segments.append(
                    Segment(
                        path,
                        run,
                        (*used, f'norm{stage}'),
                        stage,
                        levels.index(stage),
                        partial(_normed, stage=stage),
                    )
                )
            else:
                segments.append(Segment(path, run, used, stage))
    norm = partial(type(last.norm), eps=last.norm.eps)
    return Unrolled(
        segments,
        partial(
            ReducedConvNeXtBlock,
            block=type(last),
            norm=norm,
            act=deepcopy(last.act),
            mlp_ratio=last.pointwise_conv1.weight.size(0) / last.pointwise_conv1.weight.size(1),
            linear_pw_conv=last.linear_pw_conv,
            use_grn=last.grn is not None,
        ),
        partial(_reduced_output, pool=backbone.gap_before_final_norm, norm=norm),
    )
