"""The tools in several processes: as a launcher starts them, and when one of them is lost."""

import contextlib
import io
import json
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..several_processes import launch
from .in_process import ROOT, run_tool, write_config
from .test_resume import losses

pytestmark = pytest.mark.slow

TEXT = """
model = dict(test_cfg=dict(score_thr=0.))
custom_hooks = [dict(type='FBAHook'), dict(type='EMAHook', momentum=.1)]
optim_wrapper = dict(apply='eager', accumulative_counts=2, clip_grad=None,
                     optimizer=dict(_delete_=True, type='SGD', lr=.02, momentum=.9))
train_dataloader['batch_size'] = 1
train_dataloader['dataset']['indices'] = 8
"""


def tool(rank, name, *args, own=()):
    """Run a tool in one of the processes, with arguments of its own."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        status = run_tool(name, *args, *(own[rank] if own else ()), '--launcher', 'pytorch').status
    lines = [line for line in err.getvalue().splitlines() if line.startswith('error: ')]
    return SimpleNamespace(status=status, errors=lines)


def run(name, *args, **kwargs):
    return launch(2, tool, name, *args, **kwargs)


@pytest.fixture(scope='module')
def config(data, tmp_path_factory):
    """Four iterations of one image per process, in each of two epochs."""
    return write_config(tmp_path_factory.mktemp('config') / 'small.py', data, TEXT)


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """A work directory of a training that was never stopped."""
    work_dir = tmp_path_factory.mktemp('whole') / 'work'
    outcomes = run('train', config, '--work-dir', work_dir)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    return work_dir


def assert_same_checkpoints(ours, theirs):
    ours, theirs = (torch.load(path, weights_only=False) for path in (ours, theirs))
    for key in ('state_dict', 'ema_state_dict'):
        assert ours[key].keys() == theirs[key].keys()
        for name, tensor in theirs[key].items():
            assert torch.equal(tensor, ours[key][name]), name


def test_train(whole):
    found = losses(whole)
    assert sorted(found) == list(range(1, 9))
    assert all(f'local_{k}.loss' in row for row in found.values() for k in (1, 2, 3))
    (log,) = whole.glob('*/*.log')
    assert 'LocalDataParallel' in next(whole.glob('*.py')).read_text()
    assert 'bbox_mAP' in log.read_text()


def test_resume(config, whole, tmp_path):
    outcomes = run('train', config, '--work-dir', tmp_path, '--resume', whole / 'epoch_1.pth')
    assert [outcome.status for outcome in outcomes] == [0, 0]
    expected = losses(whole)
    assert losses(tmp_path) == {step: expected[step] for step in range(5, 9)}
    assert_same_checkpoints(tmp_path / 'epoch_2.pth', whole / 'epoch_2.pth')


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kills one of the processes."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at and os.environ['RANK'] == '1':
            os.kill(os.getpid(), signal.SIGKILL)


def killed_tool(rank, config, work_dir, *args):
    return tool(rank, 'train', config, '--work-dir', work_dir, *args)


def test_a_killed_process_ends_the_job_which_goes_on_after_a_restart(config, whole, tmp_path):
    with_kill = tmp_path / 'kill.py'
    with_kill.write_text(
        f"_base_ = ['{config}']\ncustom_hooks = [dict(type='FBAHook'), "
        "dict(type='EMAHook', momentum=.1), dict(type='KillHook', at=6)]\n"
    )
    survivor, killed = launch(2, killed_tool, with_kill, tmp_path / 'work')
    assert killed == -signal.SIGKILL and survivor.status == 1
    assert 'another process of this job was lost' in survivor.errors[0]
    # The survivor needs the other in the eighth iteration, which applies what has accumulated.
    assert max(losses(tmp_path / 'work')) == 7
    # Started again by torchrun, it needs no --resume.
    outcomes = launch(2, restarted_tool, config, tmp_path / 'work')
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert losses(tmp_path / 'work') == losses(whole)
    assert_same_checkpoints(tmp_path / 'work' / 'epoch_2.pth', whole / 'epoch_2.pth')


def restarted_tool(rank, config, work_dir, *args):
    os.environ['TORCHELASTIC_RESTART_COUNT'] = '1'
    return tool(rank, 'train', config, '--work-dir', work_dir, *args)


def test_test(config, whole, tmp_path):
    """The processes find together what one finds alone."""
    checkpoint = whole / 'epoch_2.pth'
    assert run_tool('test', config, checkpoint, '--work-dir', tmp_path / 'one').status == 0
    outcomes = run('test', config, checkpoint, '--work-dir', tmp_path / 'two')
    assert [outcome.status for outcome in outcomes] == [0, 0]
    one, two = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text()) for name in ('one', 'two')
    )
    assert one['coco/bbox_mAP'] > -1
    for key in one:
        assert 'time' in key or one[key] == two[key], key


# One process that differs from the others


def test_another_config(config, tmp_path):
    own = ((), ('--cfg-options', 'optim_wrapper.optimizer.lr=.5'))
    for outcome in run('train', config, '--work-dir', tmp_path, own=own):
        assert outcome.status == 1
        assert 'process 1 has another config than process 0' in outcome.errors[0]
        assert 'optim_wrapper.optimizer.lr=0.5 instead of 0.02' in outcome.errors[0]
    assert not list(tmp_path.iterdir())


def blind_tool(rank, *args):
    if rank == 1:
        exists = os.path.exists
        os.path.exists = lambda path: 'digits' not in str(path) and exists(path)
    return tool(rank, *args)


@pytest.mark.parametrize('name', ['train', 'test'])
def test_a_missing_data_set(name, config, whole, tmp_path):
    """On one of several machines, say."""
    checkpoint = [whole / 'epoch_2.pth'] if name == 'test' else []
    for outcome in launch(2, blind_tool, name, config, *checkpoint, '--work-dir', tmp_path):
        assert outcome.status == 1
        assert 'process 1 of 2: ' in outcome.errors[0] and 'does not exist' in outcome.errors[0]


def test_a_wrapper_that_knows_nothing_of_local_losses(config, tmp_path):
    options = ('--cfg-options', 'model_wrapper_cfg.type=MMDistributedDataParallel')
    for outcome in run('train', config, '--work-dir', tmp_path, *options):
        assert outcome.status == 1
        assert 'MMDistributedDataParallel would not reduce' in outcome.errors[0]


def test_back_propagation_in_several_processes(data, tmp_path):
    config = write_config(tmp_path / 'bp.py', data, base='bp', epochs=1)
    outcomes = run('train', config, '--work-dir', tmp_path / 'work')
    assert [outcome.status for outcome in outcomes] == [0, 0]


# The scripts


@pytest.fixture()
def command(tmp_path):
    """Run a script with programs that only print their arguments."""
    program = tmp_path / 'srun'
    program.write_text('#!/bin/sh\nfor x in "$@"; do echo "$x"; done\n')
    program.chmod(0o755)

    def run_script(name, *args, **env):
        env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=str(program), **env)
        return subprocess.run(
            [ROOT / 'tools' / name, *args], env=env, capture_output=True, text=True
        )

    return run_script


@pytest.mark.parametrize(
    'name, given, expected',
    [
        ('dist_train.sh', ['a b.py', '4'], ['train.py', 'a b.py', '--launcher', 'pytorch']),
        (
            'dist_test.sh',
            ['a.py', 'b c.pth', '4'],
            ['test.py', 'a.py', 'b c.pth', '--launcher', 'pytorch'],
        ),
    ],
)
def test_scripts_for_torchrun(name, given, expected, command):
    lines = command(
        name,
        *given,
        '--cfg-options',
        'x="[1, 2]"',
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='host',
        PORT='1',
    ).stdout.splitlines()
    at = lines.index(str(ROOT / 'tools' / expected[0]))
    assert lines[:2] == ['-m', 'torch.distributed.run']
    assert {
        '--nnodes=2',
        '--node-rank=1',
        '--master-addr=host',
        '--master-port=1',
        '--nproc-per-node=4',
    } <= set(lines[:at])
    assert lines[at + 1 :] == [*expected[1:], '--cfg-options', 'x="[1, 2]"']


def test_restarts(command):
    lines = command(
        'dist_train.sh', 'a.py', '2', MAX_RESTARTS='3', MASTER_ADDR='host', PORT='1'
    ).stdout.splitlines()
    assert {'--max-restarts=3', '--rdzv-backend=c10d', '--rdzv-endpoint=host:1'} <= set(lines)


@pytest.mark.parametrize(
    'name, given, expected',
    [
        (
            'slurm_train.sh',
            ['part', 'job', 'a b.py', 'w d'],
            ['train.py', 'a b.py', '--work-dir=w d', '--launcher', 'slurm'],
        ),
        (
            'slurm_test.sh',
            ['part', 'job', 'a.py', 'b c.pth'],
            ['test.py', 'a.py', 'b c.pth', '--launcher', 'slurm'],
        ),
    ],
)
def test_scripts_for_slurm(name, given, expected, command):
    lines = command(
        name, *given, '--cfg-options', 'x="[1, 2]"', GPUS='4', SRUN_ARGS='--qos=x --time=1'
    ).stdout.splitlines()
    at = lines.index(str(ROOT / 'tools' / expected[0]))
    assert lines[:2] == ['-p', 'part']
    assert {
        '--ntasks=4',
        '--ntasks-per-node=4',
        '--gres=gpu:4',
        '--qos=x',
        '--time=1',
        '--kill-on-bad-exit=1',
    } <= set(lines[:at])
    assert lines[at + 1 :] == [*expected[1:], '--cfg-options', 'x="[1, 2]"']


@pytest.mark.parametrize(
    'name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_scripts_say_what_they_need(name, command):
    outcome = command(name)
    assert outcome.returncode == 2 and outcome.stderr.startswith('usage: ')
