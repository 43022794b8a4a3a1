"""What a step computes: arithmetic of matrix products and convolutions, and bytes moved.

``torch.utils.flop_counter`` has the formulas. Its own mode counts the same, but follows modules
with hooks and takes ops apart, several times as slowly.
"""

from contextlib import contextmanager
from typing import Any, Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..compat.torch_versions import flop_registry
from ..models import sliced_focal_loss
from .memory import tensors_in

aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

# Floating-point operations of a large convolution in the time in which an elementwise op moves a
# byte. Fitted on CPU (benchmarks/planning.py); of a GPU taken from data sheets.
OPERATIONS_PER_BYTE = dict(cpu=8.0, cuda=25.0)
_MOVE_NOTHING = frozenset(
    [
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_strided.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
    ]
)


class OperationCounter(TorchDispatchMode):
    """Counts the arithmetic and the memory traffic of all ops, on real or simulated tensors.

    Attributes:
        flops (int): Floating-point operations of matrix products, convolutions and attention.
        bytes_moved (int): Bytes that all ops read and write, views aside.
        times (int): How often an op counts.

    Example:
        >>> with OperationCounter() as counter:
        ...     y = torch.ones(8, 4) @ torch.ones(4, 2)
        >>> counter.flops
        128
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes_moved = 0
        self.times = 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is _DEVICE:
            return result
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += self.times * formula(*args, **kwargs, out_val=result)
        if not (func.is_view or func in _MOVE_NOTHING):
            self.bytes_moved += self.times * (_nbytes((args, kwargs)) + _nbytes(result))
        return result


@contextmanager
def few_slices(counter: OperationCounter) -> Iterator[None]:
    """Within this context, of a loss's many slices alike two are computed, and count for all.

    Of a focal loss at real size they are half of all ops. Two: the second finds what the first one
    left, as all others do.

    Args:
        counter: Counts the ops.
    """

    def starts(rows: int, step: int) -> Iterator[int]:
        whole, rest = divmod(rows, step)
        if whole:
            yield 0
        if whole > 1:
            counter.times = whole - 1
            yield step
            counter.times = 1
        if rest:
            yield whole * step

    with mock.patch.object(sliced_focal_loss, 'starts_of_slices', starts):
        yield


def _nbytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))
