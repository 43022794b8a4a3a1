"""How mmagic's EDSRNet unrolls: residual blocks at the image's resolution, then reconstruction."""
from functools import partial
from typing import Optional, Tuple

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule

# The map that EDSR's long skip connection brings from the first convolution to the last layers.
FIRST_MAP = 'first_map'


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


def _steps_of(scale: int) -> Tuple[int, ...]:
    """Factors of the pixel shuffles that EDSR enlarges with: twos, or one three."""
    return (3, ) if scale == 3 else (2, ) * (scale.bit_length() - 1)


class ReducedReconstruction(BaseModule):
    """Makes an image of a map as EDSR's last layers do, with few channels where maps are large.

    One convolution at the image's resolution, EDSR's long skip, pixel-shuffle upsampling, one
    convolution to colours, mean and standard deviation back (FBA paper, equation 6).

    Args:
        channels: Channels of the enlarged maps.
        residual: None, or how the images are enlarged to which this adds details only:
            ``'bicubic'`` or ``'bilinear'``.
        in_channels: Channels of the map and of the first map.
        out_channels: Channels of the image.
        scale: Pixels of the result per pixel of the input, along a side.
        mean: Of the colours, one for each channel.
        std: Of the colours.

    Example:
        >>> head = ReducedReconstruction(16, None, 64, 3, 2, (.4, .4, .4), (1., 1., 1.))
        >>> x, first_map, images = torch.rand(2, 64, 24, 24), torch.rand(2, 64, 24, 24), None
        >>> head(x, first_map, images).shape
        torch.Size([2, 3, 48, 48])
    """

    def __init__(self, channels: int, residual: Optional[str], in_channels: int, out_channels: int,
                 scale: int, mean: Tuple[float, ...], std: Tuple[float, ...]):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.conv_after_body = conv(in_channels, in_channels)
        enlarge = []
        for step in _steps_of(scale):
            enlarge += [conv(in_channels, channels * step**2), nn.PixelShuffle(step)]
            in_channels = channels
        self.enlarge = nn.Sequential(*enlarge)
        self.conv_last = conv(in_channels, out_channels)
        self.residual = residual
        self.scale = scale
        self.register_buffer('mean', Tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', Tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor, first_map: Optional[Tensor], images: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            x: Of shape (N, in_channels, H, W).
            first_map: The first convolution's output, of the same shape; None leaves the skip out.
            images: The images to enlarge, (N, out_channels, H, W); read with ``residual`` only.

        Returns:
            Images of shape (N, out_channels, H * scale, W * scale).
        """
        x = self.conv_after_body(x)
        if first_map is not None:
            x += first_map
        x = self.conv_last(self.enlarge(x)) * self.std
        if self.residual is None:
            return x + self.mean
        return x + F.interpolate(
            images, scale_factor=self.scale, mode=self.residual, align_corners=False)


def _reduced_block(in_channels: int, out_channels: int, stride: int, block: type,
                   res_scale: float) -> nn.Module:
    if stride != 1:
        raise LocalLearningError(
            f'a residual block of EDSRNet keeps the resolution, stride={stride} does not fit: '
            'leave the strides of the auxiliary network as the partition tells them')
    own = block(mid_channels=out_channels, res_scale=res_scale)
    if in_channels == out_channels:
        return own
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), own)


@backbone_family('EDSRNet')
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
        Segment('stem', _run_stem, ('conv_first', ), stage=-1, keeps=FIRST_MAP),
        *(Segment(path, partial(run_submodule, path=path), (path, ), stage=0) for path in blocks),
        Segment(
            'tail',
            _run_tail, ('conv_after_body', 'upsample', 'conv_last'),
            stage=1,
            level=0,
            reads=(FIRST_MAP, ))
    ]
    reduced_block = None
    if blocks:
        block = backbone.get_submodule(blocks[-1])
        reduced_block = partial(_reduced_block, block=type(block), res_scale=block.res_scale)
    reduced_head = partial(
        ReducedReconstruction,
        in_channels=backbone.mid_channels,
        out_channels=backbone.out_channels,
        scale=backbone.upscale_factor,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()))
    return Unrolled(
        segments,
        reduced_block,
        input_shape=(backbone.in_channels, 64, 64),
        returns_tuple=False,
        reduced_head=reduced_head,
        auxiliary='SLMReconstruction')
