"""How mmagic's SwinIRNet unrolls: one segment per residual Swin Transformer block (RSTB).

What flows between segments are maps (N, C, H, W), views of the tokens (N, H * W, C) that the blocks
work on. Their sides are those of the images, enlarged to whole attention windows.
"""

from functools import partial
from typing import Tuple

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from .family import backbone_family
from .reconstruction import FIRST_MAP, keeps_resolution, reduced_head, with_channels
from .segment import IMAGES, Segment, Unrolled


def _to_tokens(x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
    return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


def _to_map(tokens: Tensor, size: Tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, size)


def _normalized(backbone: nn.Module, images: Tensor) -> Tensor:
    # The mean is no buffer. Not stored as SwinIRNet does it: segments are traced without memory.
    images = backbone.check_image_size(images)
    return (images - backbone.mean.to(images)) * backbone.img_range


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    return backbone.conv_first(_normalized(backbone, x))


def _run_first_block(backbone: nn.Module, x: Tensor, path: str) -> Tensor:
    size = tuple(x.shape[2:])
    tokens = backbone.patch_embed(x)
    if backbone.ape:
        tokens = tokens + backbone.absolute_pos_embed
    return _to_map(backbone.get_submodule(path)(backbone.pos_drop(tokens), size), size)


def _run_block(backbone: nn.Module, x: Tensor, path: str) -> Tensor:
    tokens, size = _to_tokens(x)
    return _to_map(backbone.get_submodule(path)(tokens, size), size)


def _run_tail(backbone: nn.Module, x: Tensor, first_map: Tensor, images: Tensor) -> Tensor:
    tokens, size = _to_tokens(x)
    x = backbone.patch_unembed(backbone.norm(tokens), size)
    x = backbone.conv_after_body(x) + first_map
    if backbone.upsampler == 'pixelshuffle':
        x = backbone.conv_last(backbone.upsample(backbone.conv_before_upsample(x)))
    elif backbone.upsampler == 'pixelshuffledirect':
        x = backbone.upsample(x)
    elif backbone.upsampler == 'nearest+conv':
        x = backbone.conv_before_upsample(x)
        for conv in _convs_up(backbone):
            conv = backbone.get_submodule(conv)
            x = backbone.lrelu(conv(F.interpolate(x, scale_factor=2, mode='nearest')))
        x = backbone.conv_last(backbone.lrelu(backbone.conv_hr(x)))
    else:
        x = _normalized(backbone, images) + backbone.conv_last(x)
    x = x / backbone.img_range + backbone.mean.to(x)
    height, width = (side * backbone.upscale for side in images.shape[2:])
    return x[:, :, :height, :width]


def _convs_up(backbone: nn.Module) -> Tuple[str, ...]:
    return ('conv_up1', 'conv_up2') if backbone.upscale == 4 else ('conv_up1',)


def _tail_layers(backbone: nn.Module) -> Tuple[str, ...]:
    return (
        'norm',
        'conv_after_body',
        *{
            'pixelshuffle': ('conv_before_upsample', 'upsample', 'conv_last'),
            'pixelshuffledirect': ('upsample',),
            'nearest+conv': ('conv_before_upsample', *_convs_up(backbone), 'conv_hr', 'conv_last'),
        }.get(backbone.upsampler, ('conv_last',)),
    )


class ReducedRSTB(BaseModule):
    """One Swin Transformer block with unshifted windows, to stand in for an RSTB.

    Args:
        block: Class of the network's Swin Transformer blocks.
        **kwargs: Its arguments.

    Example:
        >>> block = unroll(MODELS.build(dict(
        ...     type='mmagic.SwinIRNet', embed_dim=60, window_size=8))).reduced_block(60, 60, 1)
        >>> block(torch.rand(2, 60, 16, 16)).shape
        torch.Size([2, 60, 16, 16])
    """

    def __init__(self, block: type, **kwargs):
        super().__init__()
        self.block = block(**kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W), with sides of whole windows, to a map of the same shape."""
        tokens, size = _to_tokens(x)
        return _to_map(self.block(tokens, size), size)


def _reduced_block(in_channels: int, out_channels: int, stride: int, **kwargs) -> nn.Module:
    keeps_resolution('SwinIRNet', stride)
    return with_channels(in_channels, out_channels, ReducedRSTB(dim=out_channels, **kwargs))


@backbone_family(
    'mmagic.models.editors.swinir.swinir_net.SwinIRNet', replaces=('forward_features',)
)
def unroll_swinir(backbone: nn.Module) -> Unrolled:
    """Stem, one segment per RSTB, and a tail that makes the image.

    The stem's output is kept for the tail, which adds it to its own map before it enlarges that.

    Args:
        backbone: A ``SwinIRNet`` of mmagic, for any of its tasks.

    Example:
        >>> unrolled = unroll_swinir(MODELS.build(dict(
        ...     type='mmagic.SwinIRNet', depths=[2, 2], num_heads=[6, 6],
        ...     window_size=8, upsampler='pixelshuffle')))
        >>> [s.name for s in unrolled.segments]
        ['stem', 'layers.0', 'layers.1', 'tail']
    """
    first, *others = [f'layers.{name}' for name, _ in backbone.layers.named_children()]
    segments = [
        Segment('stem', _run_stem, ('conv_first',), stage=-1, keeps=FIRST_MAP),
        Segment(
            first,
            partial(_run_first_block, path=first),
            ('patch_embed', first),
            stage=0,
            own_parameters=('absolute_pos_embed',) if backbone.ape else (),
        ),
        *(Segment(path, partial(_run_block, path=path), (path,), stage=0) for path in others),
        Segment(
            'tail', _run_tail, _tail_layers(backbone), stage=1, level=0, reads=(FIRST_MAP, IMAGES)
        ),
    ]
    block = backbone.layers[-1].residual_group.blocks[0]
    reduced_block = partial(
        _reduced_block,
        block=type(block),
        input_resolution=block.input_resolution,
        num_heads=block.num_heads,
        window_size=block.window_size,
        mlp_ratio=block.mlp_ratio,
        qkv_bias=block.attn.qkv.bias is not None,
        norm_layer=type(block.norm1),
    )
    in_channels = backbone.conv_first.in_channels
    enlarges = bool(backbone.upsampler)
    head = partial(
        reduced_head,
        # Without an upsampler the network restores images: it adds to them.
        own_residual=None if enlarges else 'bilinear',
        in_channels=backbone.embed_dim,
        out_channels=in_channels,
        scale=backbone.upscale if enlarges else 1,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=(1 / backbone.img_range,) * in_channels,
    )
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(in_channels, *block.input_resolution),
        returns_tuple=False,
        reduced_head=head,
        auxiliary='SLMReconstruction',
    )
