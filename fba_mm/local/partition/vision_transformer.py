"""How mmpretrain's Vision Transformer unrolls: tokens flow, and one layer is one segment."""

from functools import partial
from math import isqrt
from typing import Tuple

from mmengine.model import BaseModule
from torch import Tensor, cat, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule

# A ViT has one size of maps and no stages. Auxiliary networks put one block in the place of each
# stage that is left, and detectors take maps at quarters of the depth: so four it is.
_NUM_STAGES = 4


def _grid_of(patches: int, resolution: Tuple[int, int]) -> Tuple[int, int]:
    """Height and width in patches, which tokens alone don't tell."""
    if patches == resolution[0] * resolution[1]:
        return resolution
    return (isqrt(patches),) * 2


def _as_map(x: Tensor, extra: int, resolution: Tuple[int, int]) -> Tensor:
    """The patch tokens of (N, L, C) as a map (N, C, H, W)."""
    patches = x[:, extra:]
    grid = _grid_of(patches.size(1), resolution)
    return patches.reshape(len(x), *grid, -1).permute(0, 3, 1, 2)


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    from mmpretrain.models.utils import resize_pos_embed

    x, grid = backbone.patch_embed(x)
    if _grid_of(x.size(1), backbone.patch_resolution) != tuple(grid):
        raise LocalLearningError(
            f'images of {grid[0]}×{grid[1]} patches: a ViT in local modules needs square ones, or '
            f'those of its img_size ({backbone.patch_resolution[0]}×{backbone.patch_resolution[1]} '
            'patches): set img_size=(height, width) of the backbone to that of the training images'
        )
    if backbone.cls_token is not None:
        x = cat((backbone.cls_token.expand(len(x), -1, -1), x), dim=1)
    # As forward does it, whatever a subclass makes of the method of this name.
    x = x + resize_pos_embed(
        backbone.pos_embed,
        backbone.patch_resolution,
        grid,
        mode=backbone.interpolate_mode,
        num_extra_tokens=backbone.num_extra_tokens,
    )
    return backbone.pre_norm(backbone.drop_after_pos(x))


def _level(backbone: nn.Module, x: Tensor, final: bool) -> Tensor:
    if final and backbone.final_norm:
        x = backbone.ln1(x)
    grid = _grid_of(x.size(1) - backbone.num_extra_tokens, backbone.patch_resolution)
    return backbone._format_output(x, grid)


class ReducedTransformerLayer(BaseModule):
    """One layer of the backbone's kind, to stand in for a group of layers.

    Attention is as in the backbone. Inside the feed-forward network are a quarter of the channels:
    it holds half of a layer's activations and two thirds of its parameters, and every module has a
    layer for each group that is left.

    Args:
        in_channels: Channels of the input's tokens.
        out_channels: Channels of the output's.
        stride: 1, for tokens stay as they are.
        layer: Class of the backbone's layers.
        head_channels: Channels of one attention head.
        ffn_ratio: Channels inside the backbone's feed-forward networks over those outside.
        eps: Of its layer norms.
        **kwargs: Other arguments of ``layer``.

    Raises:
        LocalLearningError: ``stride`` isn't 1.

    Example:
        >>> block = unroll(MODELS.build(dict(
        ...     type='mmpretrain.VisionTransformer', arch='deit-s'))).reduced_block(384, 384, 1)
        >>> block(torch.rand(2, 197, 384)).shape
        torch.Size([2, 197, 384])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        layer: type,
        head_channels: int,
        ffn_ratio: float,
        eps: float,
        **kwargs,
    ):
        super().__init__()
        if stride != 1:
            raise LocalLearningError(
                f'a transformer layer keeps its tokens, stride={stride} does not fit: leave the '
                'strides of the auxiliary network as the partition tells them'
            )
        self.project = nn.Identity()
        if in_channels != out_channels:
            self.project = nn.Linear(in_channels, out_channels)
        heads = max(out_channels // head_channels, 1)
        while out_channels % heads:
            heads -= 1
        self.layer = layer(
            out_channels,
            heads,
            max(round(out_channels * ffn_ratio / 4), 1),
            norm_cfg=dict(type='LN', eps=eps),
            **kwargs,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, in_channels) to (N, L, out_channels)."""
        return self.layer(self.project(x))


class TokenOutput(BaseModule):
    """What the backbone returns of its tokens, with norms of its own.

    Args:
        channels: Channels of the tokens.
        out_type: The backbone's: ``'cls_token'``, ``'featmap'`` or ``'avg_featmap'``.
        final_norm: Whether the backbone norms the tokens first.
        eps: Of the norms.
        extra: Tokens that are no patches, which come first.
        resolution: Height and width in patches of the images that the backbone is made for.

    Example:
        >>> output = TokenOutput(384, 'cls_token', True, 1e-6, 1, (14, 14))
        >>> output(torch.rand(2, 197, 384)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        channels: int,
        out_type: str,
        final_norm: bool,
        eps: float,
        extra: int,
        resolution: Tuple[int, int],
    ):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps) if final_norm else nn.Identity()
        self.mean_norm = nn.LayerNorm(channels, eps=eps) if out_type == 'avg_featmap' else None
        self.out_type = out_type
        self.extra = extra
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """Make (N, C), or a map (N, C, H, W), of tokens (N, L, C)."""
        if self.out_type == 'cls_token':
            # The norm is one of each token alone: the others need none.
            return self.norm(x[:, 0])
        x = self.norm(x)
        if self.out_type == 'avg_featmap':
            return self.mean_norm(x[:, self.extra :].mean(dim=1))
        return _as_map(x, self.extra, self.resolution)


def _reduced_output(level: int, channels: int, final: int, **kwargs) -> nn.Module:
    # The backbone norms the tokens of its last layer alone.
    kwargs['final_norm'] = kwargs['final_norm'] and level == final
    return TokenOutput(channels, **kwargs)


def _stage_ends(num_layers: int) -> Tuple[int, ...]:
    """The last layer of each of four groups, which are as equal as can be."""
    groups = min(_NUM_STAGES, num_layers)
    return tuple(num_layers * (i + 1) // groups - 1 for i in range(groups))


@backbone_family('mmpretrain.models.backbones.vision_transformer.VisionTransformer')
def unroll_vision_transformer(backbone: nn.Module) -> Unrolled:
    """Stem, then one segment per layer; what flows are all tokens (N, L, C), the class token first.

    The layers count as four stages of equally many, all of the patches' stride. The stem, with the
    class token, the position embedding and the norm before the layers if there is one, is no
    stage. The final norm goes with the last layer.

    Args:
        backbone: A ``VisionTransformer`` of mmpretrain.

    Raises:
        LocalLearningError: It returns raw tokens, it returns the tokens of a layer at which none of
            the four groups ends, or it norms the means of several layers with one norm.

    Example:
        >>> unrolled = unroll_vision_transformer(MODELS.build(dict(
        ...     type='mmpretrain.VisionTransformer', arch='deit-small')))
        >>> [s.stage for s in unrolled.segments]
        [-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    """
    ends = _stage_ends(backbone.num_layers)
    levels = sorted(backbone.out_indices)
    _check(backbone, levels, ends)
    last = backbone.num_layers - 1
    stem = ('patch_embed', 'pre_norm')
    own = ('pos_embed',) if backbone.cls_token is None else ('cls_token', 'pos_embed')
    segments = [Segment('stem', _run_stem, stem, stage=-1, own_parameters=own)]
    for i in range(backbone.num_layers):
        path = f'layers.{i}'
        submodules = [path]
        if i == last and backbone.final_norm:
            submodules.append('ln1')
        if i in levels and backbone.out_type == 'avg_featmap':
            submodules.append('ln2')
        segments.append(
            Segment(
                path,
                partial(run_submodule, path=path),
                tuple(submodules),
                stage=sum(i > end for end in ends),
                level=levels.index(i) if i in levels else None,
                level_output=partial(_level, final=i == last),
            )
        )
    layer = backbone.layers[-1]
    settings = backbone.arch_settings
    reduced_block = partial(
        ReducedTransformerLayer,
        layer=type(layer),
        head_channels=backbone.embed_dims // settings['num_heads'],
        ffn_ratio=settings['feedforward_channels'] / backbone.embed_dims,
        eps=layer.ln1.eps,
        qkv_bias=layer.attn.qkv.bias is not None,
    )
    extra = backbone.num_extra_tokens
    return Unrolled(
        segments,
        reduced_block,
        partial(
            _reduced_output,
            final=levels.index(last) if last in levels else -1,
            out_type=backbone.out_type,
            final_norm=backbone.final_norm,
            eps=layer.ln1.eps,
            extra=extra,
            resolution=backbone.patch_resolution,
        ),
        as_map=partial(_as_map, extra=extra, resolution=backbone.patch_resolution),
        input_shape=(backbone.patch_embed.projection.in_channels, *backbone.img_size),
    )


def _check(backbone: nn.Module, levels: list, ends: Tuple[int, ...]) -> None:
    if backbone.out_type == 'raw':
        raise LocalLearningError(
            "VisionTransformer with out_type='raw' cannot be cut: set out_type to 'cls_token', "
            "'avg_featmap' or 'featmap'"
        )
    if backbone.out_type == 'avg_featmap' and len(levels) > 1:
        raise LocalLearningError(
            f"VisionTransformer with out_type='avg_featmap' and out_indices={levels} cannot be "
            'cut, for one norm serves all of them: give one index, or another out_type'
        )
    between = [i for i in levels if i not in ends]
    if between:
        raise LocalLearningError(
            f'VisionTransformer returns the tokens of layers {between}, but is cut in '
            f'{len(ends)} groups of layers: give out_indices of {list(ends)}'
        )
