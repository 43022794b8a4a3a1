"""How mmagic's MSRResNet unrolls: residual blocks, then details for the enlarged image."""

from functools import partial

from torch import Tensor, nn

from .family import backbone_family
from .reconstruction import FIRST_MAP, keeps_resolution, reduced_head, with_channels
from .segment import IMAGES, Segment, Unrolled, run_submodule


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    return backbone.lrelu(backbone.conv_first(x))


def _run_tail(backbone: nn.Module, x: Tensor, images: Tensor) -> Tensor:
    x = backbone.upsample1(x)
    if backbone.upscale_factor == 4:
        x = backbone.upsample2(x)
    x = backbone.conv_last(backbone.lrelu(backbone.conv_hr(x)))
    x += backbone.img_upsampler(images)
    return x


def _reduced_block(in_channels: int, out_channels: int, stride: int, block: type) -> nn.Module:
    keeps_resolution('MSRResNet', stride)
    return with_channels(in_channels, out_channels, block(mid_channels=out_channels))


@backbone_family('mmagic.models.editors.srgan.sr_resnet.MSRResNet')
def unroll_msrresnet(backbone: nn.Module) -> Unrolled:
    """Stem, one segment per residual block, and a tail that adds details to the enlarged images.

    The network has no long skip of its own: the stem's output is kept for the auxiliary networks.

    Args:
        backbone: An ``MSRResNet`` of mmagic.

    Example:
        >>> unrolled = unroll_msrresnet(MODELS.build(dict(
        ...     type='mmagic.MSRResNet', in_channels=3, out_channels=3, num_blocks=2)))
        >>> [s.name for s in unrolled.segments]
        ['stem', 'trunk_net.0', 'trunk_net.1', 'tail']
    """
    blocks = [f'trunk_net.{name}' for name, _ in backbone.trunk_net.named_children()]
    upsample = [name for name in ('upsample1', 'upsample2') if hasattr(backbone, name)]
    segments = [
        Segment('stem', _run_stem, ('conv_first',), stage=-1, keeps=FIRST_MAP),
        *(Segment(path, partial(run_submodule, path=path), (path,), stage=0) for path in blocks),
        Segment(
            'tail',
            _run_tail,
            (*upsample, 'conv_hr', 'conv_last'),
            stage=1,
            level=0,
            reads=(IMAGES,),
        ),
    ]
    reduced_block = None
    if blocks:
        reduced_block = partial(_reduced_block, block=type(backbone.get_submodule(blocks[-1])))
    head = partial(
        reduced_head,
        own_residual='bilinear',
        in_channels=backbone.mid_channels,
        out_channels=backbone.out_channels,
        scale=backbone.upscale_factor,
        mean=(0.0,) * backbone.out_channels,
        std=(1.0,) * backbone.out_channels,
    )
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(backbone.in_channels, 64, 64),
        returns_tuple=False,
        reduced_head=head,
        auxiliary='SLMReconstruction',
    )
