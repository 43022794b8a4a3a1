"""How mmagic's RRDBNet (ESRGAN, Real-ESRGAN) unrolls: residual dense blocks, reconstruction."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .family import backbone_family
from .reconstruction import FIRST_MAP, keeps_resolution, reduced_head, with_channels
from .segment import Segment, Unrolled, run_submodule

# Pixels of the image per position of the maps: the network always enlarges these twice.
_ENLARGES = 4


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    # For smaller scales the images themselves are made smaller, and deeper.
    if backbone.upscale_factor != _ENLARGES:
        x = F.pixel_unshuffle(x, _ENLARGES // backbone.upscale_factor)
    return backbone.conv_first(x)


def _run_tail(backbone: nn.Module, x: Tensor, first_map: Tensor) -> Tensor:
    x = first_map + backbone.conv_body(x)
    for conv in (backbone.conv_up1, backbone.conv_up2):
        x = backbone.lrelu(conv(F.interpolate(x, scale_factor=2, mode='nearest')))
    return backbone.conv_last(backbone.lrelu(backbone.conv_hr(x)))


def _reduced_block(
    in_channels: int, out_channels: int, stride: int, block: type, growth_channels: int
) -> nn.Module:
    keeps_resolution('RRDBNet', stride)
    return with_channels(
        in_channels, out_channels, block(mid_channels=out_channels, growth_channels=growth_channels)
    )


@backbone_family('mmagic.models.editors.esrgan.rrdb_net.RRDBNet')
def unroll_rrdbnet(backbone: nn.Module) -> Unrolled:
    """Stem, one segment per residual-in-residual dense block, and a tail that makes the image.

    The stem's output is kept for the tail, which adds it to its own map before it enlarges that.
    Auxiliary networks get one dense block, a third of one of the network's.

    Args:
        backbone: An ``RRDBNet`` of mmagic.

    Example:
        >>> unrolled = unroll_rrdbnet(MODELS.build(dict(
        ...     type='mmagic.RRDBNet', in_channels=3, out_channels=3, num_blocks=2)))
        >>> [s.name for s in unrolled.segments]
        ['stem', 'body.0', 'body.1', 'tail']
    """
    blocks = [f'body.{name}' for name, _ in backbone.body.named_children()]
    segments = [
        Segment('stem', _run_stem, ('conv_first',), stage=-1, keeps=FIRST_MAP),
        *(Segment(path, partial(run_submodule, path=path), (path,), stage=0) for path in blocks),
        Segment(
            'tail',
            _run_tail,
            ('conv_body', 'conv_up1', 'conv_up2', 'conv_hr', 'conv_last'),
            stage=1,
            level=0,
            reads=(FIRST_MAP,),
        ),
    ]
    reduced_block = None
    if blocks:
        dense = backbone.get_submodule(blocks[-1]).rdb1
        reduced_block = partial(
            _reduced_block, block=type(dense), growth_channels=dense.conv1.out_channels
        )
    out_channels = backbone.conv_last.out_channels
    head = partial(
        reduced_head,
        in_channels=backbone.conv_first.out_channels,
        out_channels=out_channels,
        scale=backbone.upscale_factor,
        enlarge=_ENLARGES,
        mean=(0.0,) * out_channels,
        std=(1.0,) * out_channels,
    )
    unshuffled = (_ENLARGES // backbone.upscale_factor) ** 2
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(backbone.conv_first.in_channels // unshuffled, 64, 64),
        returns_tuple=False,
        reduced_head=head,
        auxiliary='SLMReconstruction',
    )
