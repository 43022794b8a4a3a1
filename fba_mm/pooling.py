"""Average pooling to a given size, deterministic on a GPU where sizes divide."""

from typing import Sequence, Tuple, Union

import torch.nn.functional as F
from torch import Tensor, nn


def average_pool_to(x: Tensor, size: Union[int, Sequence[int]]) -> Tensor:
    """Average pooling to so many positions.

    Where sizes divide, windows are all alike, which is plain average pooling: its backward pass is
    deterministic on CUDA, that of adaptive pooling isn't, and is refused under
    ``torch.use_deterministic_algorithms(True)``.

    Args:
        x: Maps, (N, C, H, W).
        size: Height and width of the result, or both in one number.

    Example:
        >>> average_pool_to(torch.rand(2, 8, 32, 32), 4).shape
        torch.Size([2, 8, 4, 4])
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = x.shape[-2:]
    if height % rows or width % columns:
        return F.adaptive_avg_pool2d(x, (rows, columns))
    return F.avg_pool2d(x, (height // rows, width // columns))


class AveragePoolTo(nn.AdaptiveAvgPool2d):
    """:func:`average_pool_to` as a layer."""

    output_size: Union[int, Tuple[int, int]]

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`average_pool_to`."""
        return average_pool_to(x, self.output_size)
