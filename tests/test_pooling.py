"""Average pooling to a size is adaptive pooling, by another op where sizes divide."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fba_mm.pooling import AveragePoolTo, average_pool_to


class Names(TorchDispatchMode):
    """The names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('size, divides', [(4, True), ((2, 12), True), (1, True), ((3, 4), False)])
def test_average_pooling(size, divides, device):
    x = torch.rand(2, 3, 8, 12, dtype=torch.double, device=device, requires_grad=True)
    incoming = torch.rand_like(F.adaptive_avg_pool2d(x, size))
    expected = F.adaptive_avg_pool2d(x, size)
    (gradient,) = torch.autograd.grad(expected, x, incoming)
    torch.use_deterministic_algorithms(divides)
    try:
        with Names() as names:
            found = AveragePoolTo(size)(x)
            torch.testing.assert_close(torch.autograd.grad(found, x, incoming)[0], gradient)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected)
    assert any('adaptive' in name for name in names.found) != divides
    assert torch.equal(average_pool_to(x, size), found)
