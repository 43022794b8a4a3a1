"""The bank itself; what it holds while modules train is tested with FBAHook."""

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.analysis.memory import StorageTracker
from fba_mm.local import FeatureBank


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_maps_are_detached_aliases(scope):
    bank = FeatureBank(scope)
    feature = torch.rand(2, 8, 16, 16, requires_grad=True) * 2
    with StorageTracker() as tracker:
        bank.put(1, feature)
    assert tracker.peak == 0
    banked = bank.get(1)
    assert banked.data_ptr() == feature.data_ptr()
    assert torch.equal(banked, feature)
    assert not banked.requires_grad
    assert feature.requires_grad
    assert bank.get(0) is None


def test_the_last_map_of_a_level_counts():
    bank = FeatureBank('all')
    first, second = torch.rand(2, 1, 2, 2, 2)
    bank.put(0, first)
    bank.put(0, second)
    assert torch.equal(bank.get(0), second)
    bank.clear()
    assert bank.get(0) is None


def test_off_holds_nothing():
    bank = FeatureBank('off')
    bank.put(0, torch.rand(1, 2, 2, 2))
    assert bank.get(0) is None


@pytest.mark.parametrize('scope', ['none', None, 'Past'])
def test_unknown_scope(scope):
    with pytest.raises(LocalLearningError, match="scope=.*: .*'past', 'all', 'off'"):
        FeatureBank(scope)


def test_maps_that_the_bank_alone_keeps_may_be_smaller():
    bank = FeatureBank('all', dtype='bfloat16')
    ahead, made = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3)
    bank.put(0, ahead, ahead=True)
    bank.put(1, made)
    assert torch.equal(bank.get(0), ahead.bfloat16())
    assert bank.get(1).data_ptr() == made.data_ptr() and bank.get(1).dtype == torch.float32
    assert FeatureBank('all').dtype is None


@pytest.mark.parametrize('dtype', ['half', 'int8', 'brain', torch.int32])
def test_unknown_dtype(dtype):
    if dtype == 'half':  # torch's other name of float16
        assert FeatureBank('all', dtype).dtype == torch.float16
        return
    with pytest.raises(LocalLearningError, match="bank_dtype=.*: give 'bfloat16'"):
        FeatureBank('all', dtype)
