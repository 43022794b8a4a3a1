"""A look at the values of a tensor that doesn't make the host wait for a GPU."""

from typing import Callable

import torch
from torch import Tensor

from .errors import LocalLearningError


def check_range(values: Tensor, least: int, most: int, say: Callable[[int], str]) -> None:
    """Refuse integers out of a range, such as class labels.

    On the CPU they are read. To read them from a GPU would make the host wait for all that the GPU
    has yet to do, several times in each step: there, a kernel that fails stops the training.

    Args:
        values: Integers of any shape.
        least: The smallest that may be.
        most: The greatest that may be.
        say: From a value out of the range to the message.

    Raises:
        LocalLearningError: A value on the CPU is out of the range.

    Example:
        >>> check_range(torch.tensor([0, 3]), 0, 2, lambda label: f'label {label}: give 0 to 2')
        LocalLearningError: label 3: give 0 to 2
    """
    if not values.numel():
        return
    limits = torch.stack(values.aminmax())
    if limits.device.type != 'cpu':
        torch._assert_async(((limits >= least) & (limits <= most)).all())
        return
    smallest, greatest = limits.tolist()
    if smallest < least or greatest > most:
        raise LocalLearningError(say(smallest if smallest < least else greatest))
