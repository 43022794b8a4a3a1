"""What a training keeps does not grow, and comes out the same twice.

``python -m tests.soak`` goes on for longer.
"""

import pytest
import torch

from ..soak import soak, train

pytestmark = pytest.mark.slow


def test_live_tensors_stay_as_many(tmp_path):
    """With validation, EMA and accumulation, from the second validation to the last."""
    _, second, *_, last = soak(tmp_path, iterations=40, every=10)
    assert last.iteration == 40
    assert last.tensors == pytest.approx(second.tensors, rel=0.01)
    assert last.nbytes == pytest.approx(second.nbytes, rel=0.01)


def test_two_runs_with_one_seed_are_equal(tmp_path):
    """Weights, their average and momentum, bit for bit, with a bank that is drawn from."""
    for run in ('one', 'other'):
        train(tmp_path / run, 6, 3, 'all')
    one, other = (
        torch.load(tmp_path / run / 'iter_6.pth', weights_only=False) for run in ('one', 'other')
    )
    for key in ('state_dict', 'ema_state_dict'):
        assert one[key].keys() == other[key].keys()
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())
    states = [checkpoint['optimizer']['state'] for checkpoint in (one, other)]
    assert states[0].keys() == states[1].keys() and states[0]
    for index, state in states[0].items():
        assert torch.equal(state['momentum_buffer'], states[1][index]['momentum_buffer'])
