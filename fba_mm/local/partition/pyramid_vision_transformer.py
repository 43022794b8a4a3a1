"""How mmdet's Pyramid Vision Transformers and mmseg's MixVisionTransformer unroll, by layer.

What flows between segments are maps (N, C, H, W), views of the tokens that layers work on.
"""

from functools import partial
from typing import Callable, Optional, Tuple

from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule
from torch import Tensor, nn

from .family import backbone_family
from .segment import Segment, Unrolled
from .swin_transformer import _to_map, _to_tokens


def _run_layers(
    backbone: nn.Module,
    x: Tensor,
    embed: Optional[str],
    layers: Tuple[str, ...],
    norm: Optional[str],
    in_one_piece: bool,
) -> Tensor:
    if embed is None:
        tokens, size = _to_tokens(x)
    else:
        tokens, size = backbone.get_submodule(embed)(x)
    for layer in layers:
        tokens = backbone.get_submodule(layer)(tokens, size)
    if norm is not None:
        tokens = backbone.get_submodule(norm)(tokens)
    x = _to_map(tokens, size)
    return x.contiguous() if norm is not None and in_one_piece else x


class ReducedPyramidLayer(BaseModule):
    """A patch embedding and a feed-forward network with a convolution, to stand in for a stage.

    Inside the feed-forward network are a quarter of the channels. There is no attention: the
    reduction of its keys fits one stage's maps, and this block may stand at any.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the patch embedding.
        ffn: Makes a feed-forward network of the backbone's kind.
        ffn_ratio: Channels inside the backbone's over those outside.

    Example:
        >>> block = unroll(MODELS.build(dict(
        ...     type='mmdet.PyramidVisionTransformerV2', embed_dims=32,
        ...     num_layers=[2, 2, 2, 2]))).reduced_block(32, 64, 2)
        >>> block(torch.rand(2, 32, 28, 28)).shape
        torch.Size([2, 64, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        ffn: Callable[..., nn.Module],
        ffn_ratio: float,
    ):
        super().__init__()
        self.embed = None
        if stride != 1 or in_channels != out_channels:
            self.embed = PatchEmbed(
                in_channels=in_channels,
                embed_dims=out_channels,
                kernel_size=stride,
                stride=stride,
                padding='corner',
                norm_cfg=dict(type='LN', eps=1e-6),
            )
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)
        self.ffn = ffn(
            embed_dims=out_channels,
            feedforward_channels=max(round(out_channels * ffn_ratio / 4), 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        tokens, size = _to_tokens(x) if self.embed is None else self.embed(x)
        return _to_map(self.ffn(self.norm(tokens), size, identity=tokens), size)


@backbone_family('mmdet.models.backbones.pvt.PyramidVisionTransformer')
def unroll_pyramid_vision_transformer(backbone: nn.Module) -> Unrolled:
    """One segment per layer, the first of a stage with its patch and position embeddings.

    Args:
        backbone: A ``PyramidVisionTransformer`` or ``PyramidVisionTransformerV2`` of mmdet.

    Example:
        >>> [s.name for s in unroll_pyramid_vision_transformer(MODELS.build(dict(
        ...     type='mmdet.PyramidVisionTransformer', num_layers=[2, 1, 1, 1]))).segments][:2]
        ['layers.0.1.1', 'layers.0.1.2']
    """
    # mmdet's feed-forward networks have a convolution where they are told to.
    return _unrolled(backbone, in_one_piece=True, use_conv=True)


@backbone_family('mmseg.models.backbones.mit.MixVisionTransformer')
def unroll_mix_vision_transformer(backbone: nn.Module) -> Unrolled:
    """One segment per layer, the first of a stage with its patch embedding.

    Args:
        backbone: A ``MixVisionTransformer`` of mmseg, SegFormer's backbone.
    """
    return _unrolled(backbone, in_one_piece=False)


def _unrolled(backbone: nn.Module, in_one_piece: bool, **settings) -> Unrolled:
    """A segment per layer.

    Args:
        backbone: The backbone.
        in_one_piece: Whether stages pass on contiguous maps, not views of tokens.
        **settings: Of the reduced layers' feed-forward networks.
    """
    levels = sorted(backbone.out_indices)
    segments = []
    for stage, (_, layers, _) in enumerate(backbone.layers):
        paths = [f'layers.{stage}.1.{i}' for i in range(len(layers))]
        # The position embedding is a layer without a part of its own to learn from.
        first = 2 if len(layers) > 1 and not hasattr(layers[0], 'attn') else 1
        groups = [tuple(paths[:first]), *((path,) for path in paths[first:])]
        for group in groups:
            embed = f'layers.{stage}.0' if group is groups[0] else None
            norm = f'layers.{stage}.2' if group is groups[-1] else None
            used = tuple(path for path in (embed, *group, norm) if path)
            level = levels.index(stage) if norm and stage in levels else None
            segments.append(
                Segment(
                    group[-1],
                    partial(
                        _run_layers, embed=embed, layers=group, norm=norm, in_one_piece=in_one_piece
                    ),
                    used,
                    stage,
                    level,
                )
            )
    own = backbone.layers[-1][1][-1].ffn
    return Unrolled(
        segments,
        partial(
            ReducedPyramidLayer,
            ffn=partial(type(own), **settings),
            ffn_ratio=own.feedforward_channels / own.embed_dims,
        ),
    )
