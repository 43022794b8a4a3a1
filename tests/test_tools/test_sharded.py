"""The training tool with parameters in pieces: its checkpoints are those of one process."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from fba_mm.compat.torch_versions import fully_shard

from ..several_processes import launch
from .in_process import run_tool, write_config
from .test_distributed import tool
from .test_resume import losses

pytestmark = [pytest.mark.slow, pytest.mark.skipif(fully_shard is None, reason='needs torch 2.6')]

TEXT = """
model = dict(test_cfg=dict(score_thr=0.), backbone=dict(num_modules=3))
optim_wrapper = dict(apply='eager', accumulative_counts=2, clip_grad=None,
                     optimizer=dict(_delete_=True, type='AdamW', lr=.001))
train_dataloader['batch_size'] = 1
train_dataloader['dataset']['indices'] = 8
default_hooks['checkpoint'].update(save_best='auto')
"""
WRAPPERS = ('LocalShardedDataParallel', 'LocalModuleParallel')
OTHER_RATE = ((), ('optim_wrapper.optimizer.lr=.5',))


def all_trainings(rank, config, root):
    """What the tool says of a whole training, a resumed one, and some that can't begin."""

    def train(name, wrapper, *args, own=()):
        options = ('--cfg-options', f'model_wrapper_cfg.type={wrapper}', *own)
        return tool(rank, 'train', config, '--work-dir', root / name, *args, *options)

    exists, found = os.path.exists, {}
    for wrapper in WRAPPERS:
        found['config', wrapper] = train('other', wrapper, own=OTHER_RATE[rank])
        if rank == 1:
            os.path.exists = lambda path: 'digits' not in str(path) and exists(path)
        found['data', wrapper] = train('other', wrapper)
        os.path.exists = exists
    found['whole'] = train('whole', WRAPPERS[0])
    with mock.patch.dict(os.environ, TORCHELASTIC_RESTART_COUNT='0'):
        found['resumed'] = train('resumed', WRAPPERS[0], '--resume', root / 'whole/epoch_1.pth')
    return found


@pytest.fixture(scope='module')
def trainings(data, tmp_path_factory):
    root = tmp_path_factory.mktemp('sharded')
    config = write_config(root / 'small.py', data, TEXT)
    outcomes = launch(2, all_trainings, config, root)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    return SimpleNamespace(config=config, root=root, outcomes=outcomes)


def test_train_and_resume(trainings):
    whole, resumed = trainings.root / 'whole', trainings.root / 'resumed'
    for outcome in trainings.outcomes:
        assert outcome['whole'].status == outcome['resumed'].status == 0, outcome
    expected = losses(whole)
    assert sorted(expected) == list(range(1, 9)) and 'local_2.loss' in expected[1]
    assert losses(resumed) == {step: expected[step] for step in range(5, 9)}
    ours, theirs = (
        torch.load(root / 'epoch_2.pth', weights_only=False) for root in (resumed, whole)
    )
    for name, tensor in theirs['state_dict'].items():
        assert type(tensor) is torch.Tensor and torch.equal(tensor, ours['state_dict'][name]), name
    for i, state in theirs['optimizer']['state'].items():
        for name, tensor in state.items():
            assert type(tensor) is torch.Tensor
            assert torch.equal(tensor, ours['optimizer']['state'][i][name]), (i, name)
    (best,) = whole.glob('best_*.pth')
    best = torch.load(best, weights_only=False)['state_dict']
    assert all(torch.equal(tensor, best[name]) for name, tensor in theirs['state_dict'].items())


def test_checkpoints_are_those_of_one_process(trainings, tmp_path):
    """The stock model is made of them, and one process resumes from them."""
    checkpoint = trainings.root / 'whole' / 'epoch_2.pth'
    assert run_tool('export', trainings.config, checkpoint, tmp_path / 'stock.pth').status == 0
    stock = torch.load(tmp_path / 'stock.pth', weights_only=True)['state_dict']
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    assert 'backbone.conv1.weight' in stock
    for name, tensor in stock.items():
        assert torch.equal(tensor, weights[name.replace('backbone.', 'backbone.backbone.', 1)])
    assert (
        run_tool(
            'train',
            trainings.config,
            '--work-dir',
            tmp_path / 'on',
            '--resume',
            checkpoint,
            '--cfg-options',
            'train_cfg.max_epochs=3',
        ).status
        == 0
    )
    assert min(losses(tmp_path / 'on')) == 9


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_one_process_that_differs(wrapper, trainings):
    """An error in all, before anything is written."""
    for outcome in trainings.outcomes:
        for what, message in {
            'config': 'process 1 has another config than process 0, optim_wrapper.optimizer.lr',
            'data': 'process 1 of 2: ',
        }.items():
            assert outcome[what, wrapper].status == 1
            assert message in outcome[what, wrapper].errors[0]
    assert not (trainings.root / 'other').exists()
