"""A state that training can't go on from is refused before it starts."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR
from torch import nn

from fba_mm import LocalLearningError
from fba_mm.checkpoint import check_fit, check_schedulers


def trained(kind, **settings):
    """A model of two layers, its optimizer after a step, and a checkpoint of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = kind(
        [dict(params=model[0].parameters()), dict(params=model[1].parameters())], lr=0.1, **settings
    )
    model(torch.rand(5, 3)).square().sum().backward()
    optimizer.step()
    hub = dict(
        log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])},
        runtime_info=dict(best_score=0.5),
        resumed_keys={},
    )
    checkpoint = dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=hub,
        meta=dict(epoch=1, iter=5),
    )
    return model, optimizer, copy.deepcopy(checkpoint)


def check(model, optimizer, checkpoint, path):
    torch.save(checkpoint, path)
    check_fit(model, str(path), 'resume', trust=True, optimizer=optimizer)


@pytest.mark.parametrize(
    'kind, settings',
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.1)),
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, dict(amsgrad=True)),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, dict(momentum=0.9, centered=True)),
    ],
)
def test_a_sound_state(kind, settings, tmp_path):
    model, optimizer, checkpoint = trained(kind, **settings)
    before = copy.deepcopy(optimizer.state_dict())
    check(model, optimizer, checkpoint, tmp_path / 'x.pth')
    assert str(optimizer.state_dict()) == str(before)  # Asking changes nothing.
    new = kind([dict(params=layer.parameters()) for layer in model], lr=0.1, **settings)
    check(model, new, checkpoint, tmp_path / 'x.pth')


FAULTS = {
    'moments of another shape': (
        lambda c: c['optimizer']['state'][0].update(exp_avg=torch.zeros(4, 1)),
        r'parameter 0, exp_avg of \(4, 1\) float32 instead of \(4, 3\) float32',
    ),
    'moments that are whole numbers': (
        lambda c: c['optimizer']['state'][2].update(exp_avg=torch.zeros(4, dtype=torch.long)),
        r'parameter 2, exp_avg of \(4,\) int64',
    ),
    'moments that are none': (
        lambda c: c['optimizer']['state'][1].update(exp_avg_sq='much'),
        'exp_avg_sq of str',
    ),
    'no moments': (
        lambda c: c['optimizer']['state'][1].pop('exp_avg_sq'),
        'exp_avg_sq of NoneType',
    ),
    'a count that is none': (
        lambda c: c['optimizer']['state'][1].update(step=[1]),
        'step of list instead of a number',
    ),
    'a state of no parameter': (lambda c: c['optimizer']['state'].update({9: {}}), 'state of 9'),
    'another learning rate': (
        lambda c: c['optimizer']['param_groups'][0].update(lr='0.1'),
        'as to lr',
    ),
    'no groups': (lambda c: c['optimizer'].update(param_groups=3), 'AdamW with these parameter'),
    'no optimizer': (lambda c: c.update(optimizer='AdamW'), 'AdamW with these parameter'),
    'an epoch in words': (lambda c: c['meta'].update(epoch='one'), "meta.epoch='one'"),
    'an iteration before the first': (lambda c: c['meta'].update(iter=-1), 'meta.iter=-1'),
    'a log of text': (
        lambda c: c['message_hub']['log_scalars']['train/loss'].__dict__.update(
            _log_history=np.array(['a', 'b'])
        ),
        'history of train/loss',
    ),
    'no log': (lambda c: c['message_hub'].update(log_scalars=[]), 'no dict log_scalars'),
    'a score in words': (
        lambda c: c['message_hub']['runtime_info'].update(best_score='good'),
        'best_score .* a str',
    ),
    'weights of another precision': (
        lambda c: c.update(
            state_dict={
                k: v.double() if v.is_floating_point() else v for k, v in c['state_dict'].items()
            }
        ),
        r'0.weight \(\(4, 3\) float64 in the checkpoint, \(4, 3\) float32 in the model\)',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_state_that_was_tampered_with(fault, tmp_path):
    spoil, words = FAULTS[fault]
    model, optimizer, checkpoint = trained(torch.optim.AdamW)
    spoil(checkpoint)
    with pytest.raises(LocalLearningError, match=f'x.pth.*{words}') as error:
        check(model, optimizer, checkpoint, tmp_path / 'x.pth')
    assert '\n' not in str(error.value)


def test_weights_of_another_precision_or_kind(tmp_path):
    """Published weights may have half the precision; but whole numbers are no weights."""
    model = nn.Linear(2, 2)
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / 'x.pth')
    for purpose in ('load', 'test'):
        check_fit(model, str(tmp_path / 'x.pth'), purpose)
    torch.save({k: v.long() for k, v in model.state_dict().items()}, tmp_path / 'x.pth')
    with pytest.raises(LocalLearningError, match=r'weight \(\(2, 2\) int64 in the checkpoint'):
        check_fit(model, str(tmp_path / 'x.pth'), 'test')


def schedulers():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    return [
        LinearLR(optimizer, start_factor=0.1, end=5),
        MultiStepLR(optimizer, milestones=[8, 11]),
        CosineAnnealingLR(optimizer, T_max=4),
    ]


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda states: states.pop(), 'has 2 parameter schedulers, and the config 3'),
        (lambda states: states[0].update(last_step='five'), 'a str as last_step of a LinearLR'),
        (lambda states: states[1].update(milestones=8), 'a int as milestones of a MultiStepLR'),
        (lambda states: states.__setitem__(2, {}), 'no state of a CosineAnnealingLR'),
    ],
)
def test_states_of_schedulers(spoil, words):
    states = [copy.deepcopy(one.state_dict()) for one in schedulers()]
    check_schedulers(schedulers(), states)
    check_schedulers(dict(a=schedulers()), dict(a=states))
    spoil(states)
    for own, given in ((schedulers(), states), (dict(a=schedulers()), dict(a=states))):
        with pytest.raises(LocalLearningError, match=f'{words}; keep the param_scheduler'):
            check_schedulers(own, given)
