"""Ops on tensors without memory: shapes, types and who shares memory with whom, as in torch."""

import pytest
import torch

from fba_mm.analysis import simulated_step
from fba_mm.analysis.simulated_step import _FakeTensorMode, _Values

# Each is run on tensors of shape (4, 6), and on its own results.
OPS = {
    'a sum': lambda x: x + x,
    'with an integer': lambda x: x.int() + 1,
    'with a float': lambda x: x.int() + 1.0,
    'with a flag': lambda x: x.int() + True,
    'a view': lambda x: x.t()[1:],
    'a view that does not say so': lambda x: torch.ops.aten._unsafe_view(x, [24]),
    'several results': lambda x: x.max(1)[1],
    'a part of a larger storage': lambda x: torch.empty_strided((2, 3), (5, 1)) + x[:2, :3],
    'channels last': lambda x: x.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) + 1,
    'in place': lambda x: x.mul_(2),
    'with a number that is a tensor': lambda x: x.half() * torch.tensor(2.0),
    'several tensors': lambda x: torch.cat([x, x.t().reshape(4, 6)]),
}


def facts(x, result):
    shares = result.untyped_storage()._cdata == x.untyped_storage()._cdata
    return (
        result.shape,
        result.stride(),
        result.dtype,
        result.untyped_storage().nbytes(),
        shares,
        result.device,
    )


@pytest.mark.parametrize('name', OPS)
def test_as_in_torch(name):
    """The first time, and when the op is remembered."""
    x = torch.zeros(4, 6)
    expected = facts(x, OPS[name](x))
    fake = _FakeTensorMode()
    simulated_step._results.clear()
    for _ in range(2):
        with fake, _Values(fake):
            x = fake.from_tensor(torch.zeros(4, 6))
            result = OPS[name](x)
            found = facts(x, result)
        assert found == expected


def test_an_op_that_is_remembered_is_not_run_again():
    fake = _FakeTensorMode()
    with fake, _Values(fake):
        x = fake.from_tensor(torch.zeros(4, 6))
        simulated_step._results.clear()
        x.exp()
        known = dict(simulated_step._results)
        made = [x.exp() for _ in range(2)]
        assert simulated_step._results == known and len(known) == 1
        assert len({one.untyped_storage()._cdata for one in (x, *made)}) == 3
