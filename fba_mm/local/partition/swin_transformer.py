"""How the Swin Transformers of mmpretrain and mmdet unroll: one segment per block.

What flows between segments are maps (N, C, H, W). They are views of the tokens (N, H * W, C) that
the blocks work on, so that nothing is copied.
"""

from functools import partial
from math import isqrt
from typing import Callable, Optional, Tuple

from mmcv.cnn.bricks.transformer import PatchMerging
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled


def _to_tokens(x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
    return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


def _to_map(tokens: Tensor, size: Tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    tokens, size = backbone.patch_embed(x)
    if backbone.use_abs_pos_embed:
        embedding = backbone.absolute_pos_embed
        if hasattr(backbone, 'interpolate_mode'):
            from mmpretrain.models.utils import resize_pos_embed

            embedding = resize_pos_embed(
                embedding,
                backbone.patch_resolution,
                size,
                backbone.interpolate_mode,
                backbone.num_extra_tokens,
            )
        tokens = tokens + embedding
    return _to_map(backbone.drop_after_pos(tokens), size)


def _run_block(backbone: nn.Module, x: Tensor, path: str, downsample: Optional[str]) -> Tensor:
    tokens, size = _to_tokens(x)
    if downsample is not None:
        tokens, size = backbone.get_submodule(downsample)(tokens, size)
    return _to_map(backbone.get_submodule(path)(tokens, size), size)


def _normed(backbone: nn.Module, x: Tensor, stage: int) -> Tensor:
    return _norm_map(x, getattr(backbone, f'norm{stage}'))


def _norm_map(x: Tensor, norm: nn.Module) -> Tensor:
    tokens, size = _to_tokens(x)
    return _to_map(norm(tokens), size).contiguous()


class ReducedSwinBlock(BaseModule):
    """One block with unshifted windows, to stand in for a whole stage, and its patch merging.

    Attention is as in the backbone. Inside the feed-forward network are a quarter of the channels:
    it holds much of a block's activations and most of its parameters, and every module has a block
    for each stage that is left.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the patch merging.
        block: Class of the backbone's blocks.
        head_channels: Channels of one attention head.
        ffn_ratio: Channels inside the backbone's feed-forward networks over those outside.
        by_ratio: Whether ``block`` takes that as ``ffn_ratio``, as mmpretrain's does, or as
            ``feedforward_channels``, as mmdet's.
        **kwargs: Other arguments of ``block``.

    Example:
        >>> block = unroll(MODELS.build(dict(
        ...     type='mmpretrain.SwinTransformer', arch='tiny'))).reduced_block(96, 192, 2)
        >>> block(torch.rand(2, 96, 28, 28)).shape
        torch.Size([2, 192, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        block: type,
        head_channels: int,
        ffn_ratio: float,
        by_ratio: bool,
        **kwargs,
    ):
        super().__init__()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = PatchMerging(in_channels, out_channels, kernel_size=stride)
        heads = max(out_channels // head_channels, 1)
        while out_channels % heads:
            heads -= 1
        ffn_ratio /= 4
        if by_ratio:
            kwargs['ffn_ratio'] = ffn_ratio
        else:
            kwargs['feedforward_channels'] = max(round(out_channels * ffn_ratio), 1)
        self.block = block(embed_dims=out_channels, num_heads=heads, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        tokens, size = _to_tokens(x)
        if self.downsample is not None:
            tokens, size = self.downsample(tokens, size)
        return _to_map(self.block(tokens, size), size)


class NormedMap(BaseModule):
    """The layer norm that the backbone gives the maps that it returns alone.

    Args:
        channels: Channels of the map.
        eps: Of the norm.

    Example:
        >>> NormedMap(96, 1e-5)(torch.rand(2, 96, 8, 8)).shape
        torch.Size([2, 96, 8, 8])
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Norm the channels at each position of a map (N, C, H, W)."""
        return _norm_map(x, self.norm)


def _reduced_output(level: int, channels: int, eps: float) -> nn.Module:
    return NormedMap(channels, eps)


@backbone_family(
    'mmdet.models.backbones.swin.SwinTransformer',
    'mmpretrain.models.backbones.swin_transformer.SwinTransformer',
    'mmseg.models.backbones.swin.SwinTransformer',
    steps_into=(
        'mmdet.models.backbones.swin.SwinBlockSequence',
        'mmpretrain.models.backbones.swin_transformer.SwinBlockSequence',
        'mmseg.models.backbones.swin.SwinBlockSequence',
    ),
)
def unroll_swin_transformer(backbone: nn.Module) -> Unrolled:
    """Stem, then one segment per block; the patch merging before a stage is with its first block.

    The norms of the levels that the backbone returns are no part of what flows on: each is trained
    by the module that ends with its stage.

    Args:
        backbone: A ``SwinTransformer`` of mmpretrain, mmdet or mmseg.

    Raises:
        LocalLearningError: It returns its maps after the patch merging that follows them.

    Example:
        >>> [s.name for s in unroll_swin_transformer(MODELS.build(dict(
        ...     type='mmpretrain.SwinTransformer', arch='tiny'))).segments][:3]
        ['stem', 'stages.0.blocks.0', 'stages.0.blocks.1']
    """
    stages = backbone.stages
    if getattr(backbone, 'out_after_downsample', False):
        raise LocalLearningError(
            'SwinTransformer with out_after_downsample=True cannot be cut, for a stage ends before '
            'its patch merging: set out_after_downsample=False'
        )
    levels = sorted(backbone.out_indices)
    own = ('absolute_pos_embed',) if backbone.use_abs_pos_embed else ()
    segments = [Segment('stem', _run_stem, ('patch_embed',), stage=-1, own_parameters=own)]
    for stage, sequence in enumerate(stages):
        for i in range(len(sequence.blocks)):
            path = f'stages.{stage}.blocks.{i}'
            downsample = f'stages.{stage - 1}.downsample' if i == 0 and stage > 0 else None
            run = partial(_run_block, path=path, downsample=downsample)
            used = (path,) if downsample is None else (downsample, path)
            if i == len(sequence.blocks) - 1 and stage in levels:
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
    norm = getattr(backbone, f'norm{levels[-1]}')
    return Unrolled(
        segments,
        _reduced_block(stages[-1].blocks[-1]),
        # Without a norm_cfg, maps are returned as they are.
        partial(_reduced_output, eps=norm.eps) if isinstance(norm, nn.LayerNorm) else None,
        input_shape=_input_shape(backbone),
    )


def _input_shape(backbone: nn.Module) -> Optional[Tuple[int, int, int]]:
    """Images that the windows fit, of whole patches at every stage, so that strides are even."""
    size = getattr(backbone.patch_embed, 'init_input_size', None)
    projection = backbone.patch_embed.projection
    if size is None and backbone.use_abs_pos_embed:
        # mmdet's is for images of one size alone, and keeps no more of it than this.
        side = isqrt(backbone.absolute_pos_embed.size(1))
        return (projection.in_channels, *(side * stride for stride in projection.stride))
    if size is None:
        return None
    strides = [stride * 2 ** (len(backbone.stages) - 1) for stride in projection.stride]
    return (projection.in_channels, *(-(-s // stride) * stride for s, stride in zip(size, strides)))


def _reduced_block(block: nn.Module) -> Callable[[int, int, int], nn.Module]:
    attention = block.attn.w_msa
    has_bias = attention.qkv.bias is not None
    # mmpretrain's blocks may pad maps that are smaller than a window, mmdet's always do.
    by_ratio = hasattr(block.attn, 'pad_small_map')
    kwargs = dict(qkv_bias=has_bias)
    if by_ratio:
        kwargs = dict(pad_small_map=block.attn.pad_small_map, attn_cfgs=kwargs)
    return partial(
        ReducedSwinBlock,
        block=type(block),
        head_channels=attention.embed_dims // attention.num_heads,
        ffn_ratio=block.ffn.feedforward_channels / attention.embed_dims,
        by_ratio=by_ratio,
        window_size=block.attn.window_size,
        **kwargs,
    )
