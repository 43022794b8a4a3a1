"""What the networks that make images have in common: the first map, and a light last part."""

from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import LocalLearningError
from .segment import Unrolled

# Parts in which the last layers see a batch unless they are told how many images to see at once.
_PARTS = 4

# The name of the first convolution's output, which the feature bank holds for all later modules.
FIRST_MAP = 'first_map'


def _steps_of(factor: int) -> Tuple[int, ...]:
    """Factors of the pixel shuffles that enlarge: twos, or one three."""
    if factor == 3:
        return (3,)
    if factor < 1 or factor & (factor - 1):
        raise LocalLearningError(
            f'the light reconstruction head enlarges by 3 and powers of 2, and this network by '
            f"{factor}: take auxiliary=dict(type='SLMReconstruction', head='shared')"
        )
    return (2,) * (factor.bit_length() - 1)


class ReducedReconstruction(BaseModule):
    """Makes an image of a map as EDSR's last layers do, with few channels where maps are large.

    One convolution at the map's resolution, the first map added, pixel-shuffle upsampling, one
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
        enlarge: Pixels of the result per position of the map, along a side; ``scale`` unless given.

    Raises:
        LocalLearningError: It can't enlarge by this factor.

    Example:
        >>> head = ReducedReconstruction(16, None, 64, 3, 2, (.4, .4, .4), (1., 1., 1.))
        >>> x, first_map, images = torch.rand(2, 64, 24, 24), None, torch.rand(2, 3, 24, 24)
        >>> head(x, first_map, images).shape
        torch.Size([2, 3, 48, 48])
    """

    def __init__(
        self,
        channels: int,
        residual: Optional[str],
        in_channels: int,
        out_channels: int,
        scale: int,
        mean: Tuple[float, ...],
        std: Tuple[float, ...],
        enlarge: Optional[int] = None,
    ):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.conv_after_body = conv(in_channels, in_channels)
        steps = []
        for step in _steps_of(scale if enlarge is None else enlarge):
            steps += [conv(in_channels, channels * step**2), nn.PixelShuffle(step)]
            in_channels = channels
        self.enlarge = nn.Sequential(*steps)
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
            images: The images to enlarge, (N, out_channels, h, w).

        Returns:
            Images of shape (N, out_channels, h * scale, w * scale). Where the network has padded
            its input, the map is larger and what it makes of the padding is cut off.
        """
        x = self.conv_after_body(x)
        if first_map is not None:
            x += first_map
        x = self.conv_last(self.enlarge(x)) * self.std
        height, width = (side * self.scale for side in images.shape[2:])
        x = x[:, :, :height, :width]
        if self.residual is None:
            return x + self.mean
        return x + F.interpolate(
            images, scale_factor=self.scale, mode=self.residual, align_corners=False
        )


def reduced_head(
    channels: int, residual: Optional[str], own_residual: Optional[str] = None, **kwargs
) -> ReducedReconstruction:
    """A light head for a network; partial over its properties, a family's ``reduced_head``.

    Args:
        channels: See :class:`ReducedReconstruction`.
        residual: What the config asks for; None for what teaches a module best.
        own_residual: How the network itself adds the enlarged images, if it does.
        **kwargs: Other arguments of :class:`ReducedReconstruction`.
    """
    if residual is None:
        # A module of few layers spends them on details, not on passing on the image itself.
        residual = own_residual or 'bicubic'
    elif residual == 'network':
        residual = own_residual
    return ReducedReconstruction(channels, residual, **kwargs)


def keeps_resolution(network: str, stride: int) -> None:
    """Refuse a stride for a block of a network that has none.

    Args:
        network: Name for the message.
        stride: What was asked for.

    Raises:
        LocalLearningError: It isn't 1.
    """
    if stride != 1:
        raise LocalLearningError(
            f'a residual block of {network} keeps the resolution, stride={stride} does not fit: '
            'leave the strides of the auxiliary network as the partition tells them'
        )


def with_channels(in_channels: int, out_channels: int, block: nn.Module) -> nn.Module:
    """A block for maps of ``in_channels``, after a 1×1 convolution where it takes others.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels that the block takes and returns.
        block: The block.
    """
    if in_channels == out_channels:
        return block
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), block)


def in_slices(unrolled: Unrolled, head_batch_size: Optional[int]) -> Unrolled:
    """Let the last segment of a network that makes images see some images of the batch at a time.

    There maps are largest, several of them at once, and images do not see each other. What the
    layers make on the way is made again for the backward pass, so that it takes the room of one
    slice: the same gradients for one more forward pass of the segment.

    Args:
        unrolled: How the network unrolls.
        head_batch_size: Images in a slice; None for a quarter of the batch.
    """
    *segments, last = unrolled.segments
    run = partial(_run_in_slices, run=last.run, size=head_batch_size)
    return replace(unrolled, segments=[*segments, replace(last, run=run)])


def _run_in_slices(
    backbone: nn.Module, x: Tensor, *kept: Tensor, run: Callable, size: Optional[int]
) -> Tensor:
    size = -(-len(x) // _PARTS) if size is None else size
    if size >= len(x) or not torch.is_grad_enabled():
        return run(backbone, x, *kept)
    slices = zip(*(one.split(size) for one in (x, *kept)))
    return torch.cat(
        [
            checkpoint(run, backbone, *one, use_reentrant=False, preserve_rng_state=False)
            for one in slices
        ]
    )
