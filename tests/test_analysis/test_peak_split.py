import pytest
import torch
from torch import nn

from fba_mm.analysis import memory
from fba_mm.analysis.peak_split import ROLES, PeakSplit, resident_bytes

WEIGHT = 8 * 8 * 4


@pytest.fixture
def net():
    """Two layers of 256 bytes each."""
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))


def sgd(net, momentum=0.0):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)


def split(**sizes):
    return {**dict.fromkeys(ROLES, 0), **sizes}


@pytest.fixture(params=['announced', 'polled'], autouse=True)
def both_ways(request, monkeypatch):
    if request.param == 'polled':
        monkeypatch.setattr(memory, '_deaths_are_announced', lambda: False)


def test_gradients_and_activations_by_hand(net):
    x = torch.ones(4, 8)
    with PeakSplit(net, sgd(net)) as tracker:
        loss = net(x).sum()
        loss.backward()
    # When the last gradient is computed: both gradients, the loss, its gradient (one number), and
    # the gradient of the first layer's output. What the layers made is gone by then.
    assert tracker.split() == split(gradients=2 * WEIGHT, activations=4 + 4 + 4 * 8 * 4)
    assert sum(tracker.split().values()) == tracker.peak


def test_a_gradient_that_is_freed_was_one_all_the_same(net):
    optimizer = sgd(net)
    with PeakSplit(net, optimizer) as tracker:
        net(torch.ones(4, 8)).sum().backward()
        optimizer.zero_grad()
        torch.ones(10)
    assert tracker.split()['gradients'] == 2 * WEIGHT


def test_auxiliary_networks_are_apart(net):
    with PeakSplit(net, sgd(net), auxiliary=[net[1]]) as tracker:
        net(torch.ones(4, 8)).sum().backward()
    found = tracker.split()
    assert found['gradients'] == found['auxiliary'] == WEIGHT


def test_the_bank_is_what_it_holds_at_the_peak(net):
    bank = []
    with PeakSplit(net, sgd(net), banked=lambda: bank) as tracker:
        bank.append(torch.ones(100))
        kept = [torch.ones(10)]
        torch.ones(1000)  # the peak
        bank.append(kept[0])
        bank.pop(0)
    assert tracker.split() == split(bank=400, activations=40 + 4000)


def test_what_the_first_step_makes_of_the_optimizer_state(net):
    optimizer = sgd(net, momentum=0.9)

    def step():
        net(torch.ones(4, 8)).sum().backward()
        optimizer.step()
        torch.ones(1000)
        optimizer.zero_grad()

    for expected in (2 * WEIGHT, 0):
        with PeakSplit(net, optimizer) as tracker:
            step()
        assert tracker.split() == split(
            gradients=2 * WEIGHT, optimizer_state=expected, activations=4000
        )


def test_parameters_made_anew(net):
    with PeakSplit(net, sgd(net)) as tracker:
        net[0].weight.data = torch.zeros(8, 8)
    assert tracker.split() == split(parameters=WEIGHT)


def test_gradients_that_meet(net):
    """Where autograd adds two gradients into new memory only because a tracker is there."""
    x = torch.ones(1, 8)
    with PeakSplit(net, sgd(net)) as tracker:
        y = net(x)
        loss = net(y).sum()
        loss.backward()
    # When the last layer's first use is differentiated: what its second use gave is a gradient
    # already, what is to be added is not. Beside them the loss and its gradient, and y, the output
    # of the layer below and the gradients of both.
    assert tracker.split() == split(gradients=2 * WEIGHT, activations=WEIGHT + 4 + 4 + 4 * 8 * 4)
    assert sum(tracker.split().values()) == tracker.peak


def test_a_storage_that_grows_after_the_peak(net):
    with PeakSplit(net, sgd(net)) as tracker:
        a = torch.ones(10)
        torch.ones(1000)
        a.resize_(20)
    assert tracker.current == 80
    assert tracker.split() == split(activations=40 + 4000)


def test_no_hook_stays(net):
    tracker = PeakSplit(net, sgd(net))
    with pytest.raises(RuntimeError, match='broken step'), tracker:
        raise RuntimeError('broken step')
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    assert tracker.split() == split()


def test_frozen_parameters_get_no_hook(net):
    net[0].weight.requires_grad_(False)
    with PeakSplit(net, sgd(net)) as tracker:
        net(torch.ones(4, 8)).sum().backward()
    assert tracker.split()['gradients'] == WEIGHT


def test_what_stays_between_steps(net):
    net.add_module('norm', nn.BatchNorm1d(8))
    optimizer = sgd(net, momentum=0.9)
    net(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    norm, buffers = 2 * 8 * 4, 2 * 8 * 4 + 8
    assert resident_bytes(net, optimizer) == dict(
        parameters=2 * WEIGHT + norm + buffers, optimizer_state=2 * WEIGHT + norm, auxiliary=0
    )
    assert resident_bytes(net, optimizer, [net.norm]) == dict(
        parameters=2 * WEIGHT, optimizer_state=2 * WEIGHT, auxiliary=norm + buffers + norm
    )
    net[1].weight = net[0].weight
    assert resident_bytes(net, sgd(net))['parameters'] == WEIGHT + norm + buffers


@pytest.mark.parametrize('somebody_keeps_it', [False, True])
def test_a_peak_that_is_known_one_op_later(net, somebody_keeps_it):
    """Whether a sum of gradients takes new memory shows only when the next op runs."""
    weight, kept = net[0].weight, []
    with PeakSplit(net, sgd(net)) as tracker:
        y = weight.clone()
        z = y + y * 2
        if somebody_keeps_it:
            z.register_hook(kept.append)
        loss = z.exp().sum()
        del y, z
        tracker.reset_peak()
        loss.backward()
    # The gradient of z, the doubled one and, if the former is kept, their sum: the weight's.
    assert tracker.split() == split(
        gradients=WEIGHT, activations=(2 if somebody_keeps_it else 1) * WEIGHT + 4 + 4
    )
    assert sum(tracker.split().values()) == tracker.peak
