"""How mmagic's RDNNet unrolls: dense blocks whose outputs all meet again in a global fusion."""

from functools import partial

import torch
from torch import Tensor, nn

from .family import backbone_family
from .reconstruction import FIRST_MAP, keeps_resolution, reduced_head, with_channels
from .segment import Segment, Unrolled, run_submodule


def _run_tail(backbone: nn.Module, x: Tensor, first_map: Tensor, *earlier: Tensor) -> Tensor:
    x = backbone.gff(torch.cat([*earlier, x], 1)) + first_map
    return backbone.output(backbone.upscale(x))


def _reduced_block(
    in_channels: int, out_channels: int, stride: int, block: type, growth: int, num_layers: int
) -> nn.Module:
    keeps_resolution('RDNNet', stride)
    return with_channels(in_channels, out_channels, block(out_channels, growth, num_layers))


@backbone_family('mmagic.models.editors.rdn.rdn_net.RDNNet')
def unroll_rdn(backbone: nn.Module) -> Unrolled:
    """Two stems, one segment per residual dense block, and a tail that makes the image.

    The tail fuses the outputs of all blocks. They are kept for it, without their graphs unless the
    last module makes them; back-propagation holds as many. The auxiliary networks' blocks have half
    the layers of the network's.

    Args:
        backbone: An ``RDNNet`` of mmagic.

    Example:
        >>> unrolled = unroll_rdn(MODELS.build(dict(
        ...     type='mmagic.RDNNet', in_channels=3, out_channels=3, num_blocks=2)))
        >>> [s.name for s in unrolled.segments]
        ['sfe1', 'sfe2', 'rdbs.0', 'rdbs.1', 'tail']
    """
    blocks = [f'rdbs.{name}' for name, _ in backbone.rdbs.named_children()]
    run = partial(partial, run_submodule)
    segments = [
        Segment('sfe1', run(path='sfe1'), ('sfe1',), stage=-1, keeps=FIRST_MAP),
        Segment('sfe2', run(path='sfe2'), ('sfe2',), stage=-1),
        *(Segment(path, run(path=path), (path,), stage=0, keeps=path) for path in blocks[:-1]),
        *(Segment(path, run(path=path), (path,), stage=0) for path in blocks[-1:]),
        Segment(
            'tail',
            _run_tail,
            ('gff', 'upscale', 'output'),
            stage=1,
            level=0,
            reads=(FIRST_MAP, *blocks[:-1]),
        ),
    ]
    reduced_block = None
    if blocks:
        block = backbone.get_submodule(blocks[-1])
        reduced_block = partial(
            _reduced_block,
            block=type(block),
            growth=backbone.channel_growth,
            num_layers=max(backbone.num_layers // 2, 1),
        )
    shuffles = [m for m in backbone.upscale if isinstance(m, nn.PixelShuffle)]
    scale = 1
    for shuffle in shuffles:
        scale *= shuffle.upscale_factor
    out_channels = backbone.output.out_channels
    head = partial(
        reduced_head,
        in_channels=backbone.mid_channels,
        out_channels=out_channels,
        scale=scale,
        mean=(0.0,) * out_channels,
        std=(1.0,) * out_channels,
    )
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(backbone.sfe1.in_channels, 64, 64),
        returns_tuple=False,
        reduced_head=head,
        auxiliary='SLMReconstruction',
    )
