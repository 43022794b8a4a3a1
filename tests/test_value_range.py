"""Values out of a range are refused where they can be read for free."""

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.value_range import check_range


@pytest.mark.parametrize('values', [[], [0, 2], [[1], [2]]])
def test_within(values, device):
    check_range(torch.tensor(values, dtype=torch.long, device=device), 0, 2, str)


@pytest.mark.parametrize('values, value', [([3, 1], 3), ([1, -1, 3], -1)])
def test_out_of_it(values, value):
    with pytest.raises(LocalLearningError, match=f'^value {value}$'):
        check_range(torch.tensor(values), 0, 2, lambda found: f'value {found}')


def test_elsewhere_nothing_is_read():
    """On meta there are no values: to read one would fail."""
    check_range(torch.empty(4, dtype=torch.long, device='meta'), 0, 2, str)
