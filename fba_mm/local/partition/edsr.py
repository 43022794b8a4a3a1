"""How mmagic's EDSRNet unrolls: residual blocks at the image's resolution, then reconstruction."""

from functools import partial
from typing import Tuple

from torch import Tensor, nn

from .family import backbone_family
from .reconstruction import FIRST_MAP, keeps_resolution, reduced_head, with_channels
from .segment import Segment, Unrolled, run_submodule


def _mean_and_std(backbone: nn.Module) -> Tuple[Tensor, Tensor]:
    # They are no buffers. Not stored as EDSRNet does it: the segments are traced without memory.
    like = backbone.conv_first.weight
    return backbone.mean.to(like), backbone.std.to(like)


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    mean, std = _mean_and_std(backbone)
    return backbone.conv_first((x - mean) / std)


def _run_tail(backbone: nn.Module, x: Tensor, first_map: Tensor) -> Tensor:
    x = backbone.conv_after_body(x)
    x += first_map
    mean, std = _mean_and_std(backbone)
    return backbone.conv_last(backbone.upsample(x)) * std + mean


def _reduced_block(
    in_channels: int, out_channels: int, stride: int, block: type, res_scale: float
) -> nn.Module:
    keeps_resolution('EDSRNet', stride)
    return with_channels(
        in_channels, out_channels, block(mid_channels=out_channels, res_scale=res_scale)
    )


@backbone_family('mmagic.models.editors.edsr.edsr_net.EDSRNet')
def unroll_edsr(backbone: nn.Module) -> Unrolled:
    """Stem, one segment per residual block, and a tail that makes the image.

    The stem's output is kept for the tail, which adds it to its own map before it enlarges that.

    Args:
        backbone: An ``EDSRNet`` of mmagic.

    Example:
        >>> unrolled = unroll_edsr(MODELS.build(dict(
        ...     type='mmagic.EDSRNet', in_channels=3, out_channels=3, num_blocks=2)))
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
            ('conv_after_body', 'upsample', 'conv_last'),
            stage=1,
            level=0,
            reads=(FIRST_MAP,),
        ),
    ]
    reduced_block = None
    if blocks:
        block = backbone.get_submodule(blocks[-1])
        reduced_block = partial(_reduced_block, block=type(block), res_scale=block.res_scale)
    head = partial(
        reduced_head,
        in_channels=backbone.mid_channels,
        out_channels=backbone.out_channels,
        scale=backbone.upscale_factor,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
    )
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(backbone.in_channels, 64, 64),
        returns_tuple=False,
        reduced_head=head,
        auxiliary='SLMReconstruction',
    )
