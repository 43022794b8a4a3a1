"""The training tool with modules in several processes: its checkpoints are those of one process."""

import signal

import pytest
import torch

from ..several_processes import launch
from .in_process import run_tool, write_config
from .test_distributed import killed_tool, restarted_tool, tool
from .test_resume import losses

pytestmark = pytest.mark.slow

# Light heads of each module's own; an average of the weights, which each process has a part of.
TEXT = """
model = dict(test_cfg=dict(score_thr=0.), backbone=dict(num_modules=3, auxiliary=dict(
    type='SLM', channels=16, head=dict(type='LightRetinaNet', num_classes=10))))
custom_hooks = [dict(type='FBAHook'), dict(type='EMAHook', momentum=.1)]
optim_wrapper = dict(clip_grad=None, optimizer=dict(_delete_=True, type='SGD', lr=.02, momentum=.9))
train_dataloader['dataset']['indices'] = 6
default_hooks['checkpoint'].update(save_best='auto')
"""
PARALLEL = ('--cfg-options', 'model_wrapper_cfg.type=LocalModuleParallel')


@pytest.fixture(scope='module')
def config(data, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp('config') / 'small.py', data, TEXT)


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('alone') / 'work'
    assert run_tool('train', config, '--work-dir', work_dir).status == 0
    return work_dir


def assert_same_checkpoints(ours, theirs):
    ours, theirs = (torch.load(path, weights_only=False) for path in (ours, theirs))
    assert ours['optimizer']['param_groups'] == theirs['optimizer']['param_groups']
    assert ours['param_schedulers'] == theirs['param_schedulers']
    parts = [(ours[key], theirs[key]) for key in ('state_dict', 'ema_state_dict')]
    states = ours['optimizer']['state'], theirs['optimizer']['state']
    assert states[0].keys() == states[1].keys()
    parts += [(states[0][i], states[1][i]) for i in states[1]]
    for mine, others in parts:
        assert mine.keys() == others.keys()
        for name, tensor in others.items():
            assert tensor is None and mine[name] is None or torch.equal(tensor, mine[name]), name


def test_train(config, alone, tmp_path):
    whole = tmp_path / 'whole'
    outcomes = launch(3, tool, 'train', config, '--work-dir', whole, *PARALLEL)
    assert [outcome.status for outcome in outcomes] == [0, 0, 0], outcomes
    expected = losses(alone)
    assert sorted(expected) == list(range(1, 7)) and 'local_2.loss' in expected[1]
    assert losses(whole) == expected
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        assert_same_checkpoints(whole / name, alone / name)
    assert list(whole.glob('best_*.pth'))
    (log,) = whole.glob('*/*.log')
    assert 'Module parallel: module 1 in process 2' in log.read_text()


def test_a_killed_process_ends_the_job_which_goes_on_after_a_restart(config, alone, tmp_path):
    """The one in the middle: before it, a process waits to send, and after it, one to receive."""
    with_kill = tmp_path / 'kill.py'
    with_kill.write_text(
        f"_base_ = ['{config}']\ncustom_hooks = [dict(type='FBAHook'), "
        "dict(type='EMAHook', momentum=.1), dict(type='KillHook', at=4)]\n"
    )
    work_dir = tmp_path / 'work'
    last, killed, first = launch(3, killed_tool, with_kill, work_dir, *PARALLEL)
    assert killed == -signal.SIGKILL
    for survivor in (first, last):
        assert survivor.status == 1
        assert 'another process of this job was lost' in survivor.errors[0]
    # An epoch has three iterations. What the fourth has sent may be lost with its process.
    expected = losses(alone)
    assert max(losses(work_dir)) in (3, 4)
    # In another number of processes.
    outcomes = launch(2, restarted_tool, config, work_dir, *PARALLEL)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    assert losses(work_dir) == expected
    assert_same_checkpoints(work_dir / 'epoch_2.pth', alone / 'epoch_2.pth')


def test_more_processes_than_modules(config, tmp_path):
    for outcome in launch(
        2, tool, 'train', config, '--work-dir', tmp_path, *PARALLEL, 'model.backbone.num_modules=1'
    ):
        assert outcome.status == 1
        assert '2 processes for num_modules=1' in outcome.errors[0]


def test_testing_needs_no_modules(config, alone, tmp_path):
    """Processes test the whole network, on images of their own."""
    for outcome in launch(
        2, tool, 'test', config, alone / 'epoch_2.pth', '--work-dir', tmp_path, *PARALLEL
    ):
        assert outcome.status == 0, outcome
