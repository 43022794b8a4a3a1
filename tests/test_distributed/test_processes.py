"""Processes that start together, agree, and fail together."""

import os
import signal
import time
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from torch.utils.data import DataLoader

from fba_mm import LocalLearningError
from fba_mm.config import settings_of
from fba_mm.distributed.processes import (
    check_agreement,
    check_equal_data,
    from_first_process,
    init_processes,
    joint_errors,
    lost_processes,
)

from ..several_processes import launch, run_in_processes


def faults(outcomes) -> list:
    assert all(isinstance(error, LocalLearningError) for error in outcomes), outcomes
    return [str(error) for error in outcomes]


# Starting


def joined(rank, launcher, **dist_cfg):
    if launcher == 'slurm':
        os.environ.update(
            SLURM_PROCID=os.environ.pop('RANK'),
            SLURM_NTASKS=os.environ.pop('WORLD_SIZE'),
            SLURM_LOCALID=os.environ.pop('LOCAL_RANK'),
        )
    if launcher == 'mpi':
        os.environ.update(
            OMPI_COMM_WORLD_RANK=os.environ.pop('RANK'),
            OMPI_COMM_WORLD_SIZE=os.environ.pop('WORLD_SIZE'),
            OMPI_COMM_WORLD_LOCAL_RANK=os.environ.pop('LOCAL_RANK'),
        )
    init_processes(launcher, dist_cfg)
    init_processes(launcher, dist_cfg)  # Done already.
    total = torch.tensor([1.0])
    dist.all_reduce(total)
    timeout = dist.group.WORLD._get_backend(torch.device('cpu')).options._timeout
    return int(total), dist.get_rank(), dist.get_backend(), os.environ['LOCAL_RANK'], timeout


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_launchers(launcher):
    """Without a GPU, the default backend for GPUs becomes the one for CPUs."""
    for rank, found in enumerate(launch(2, joined, launcher, backend='nccl', timeout=77)):
        assert found == (2, rank, 'gloo', str(rank), timedelta(seconds=77))


@pytest.mark.parametrize(
    'launcher, fix',
    [('pytorch', 'tools/dist_train.sh'), ('slurm', 'tools/slurm_train.sh'), ('mpi', 'mpirun')],
)
def test_a_launcher_that_has_not_launched(launcher, fix, monkeypatch):
    for name in list(os.environ):
        if name.endswith('RANK'):
            monkeypatch.delenv(name)
    with pytest.raises(LocalLearningError, match=f'--launcher {launcher}, but .*{fix}'):
        init_processes(launcher)


def test_more_processes_than_gpus(monkeypatch):
    for name, value in dict(RANK=2, LOCAL_RANK=2, WORLD_SIZE=4).items():
        monkeypatch.setenv(name, str(value))
    with mock.patch('fba_mm.distributed.processes.get_device', lambda: 'cuda'), mock.patch(
        'torch.cuda.device_count', lambda: 2
    ), pytest.raises(LocalLearningError, match='machine with 2 GPUs: start as many'):
        init_processes('pytorch')


def test_machines_that_do_not_know_of_each_other(monkeypatch):
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    for name, value in dict(
        SLURM_PROCID=2, SLURM_LOCALID=0, SLURM_NTASKS=4, SLURM_NNODES=2
    ).items():
        monkeypatch.setenv(name, str(value))
    # It writes the places of processes into the environment, where later tests would find them.
    with mock.patch.dict(os.environ), pytest.raises(
        LocalLearningError, match='on several machines: set .* MASTER_ADDR'
    ):
        init_processes('slurm')


# Failing


def failing(rank, ranks):
    with joint_errors():
        if rank in ranks:
            raise LocalLearningError(f'fault of {rank}')
    return 'goes on'


@pytest.mark.parametrize(
    'ranks, expected', [([1], 'process 1 of 3: fault of 1'), ([0, 2], 'process 0 of 3: fault of 0')]
)
def test_a_fault_of_one_is_a_fault_of_all(ranks, expected):
    assert faults(run_in_processes(3, failing, ranks)) == [expected] * 3


def failing_alike(rank):
    with joint_errors():
        raise LocalLearningError('the same fault')


def test_a_fault_of_all_is_told_as_in_one_process():
    assert faults(run_in_processes(2, failing_alike)) == ['the same fault'] * 2
    with pytest.raises(LocalLearningError, match='^the same fault$'):
        failing_alike(0)


def test_no_fault():
    assert run_in_processes(2, failing, []) == ['goes on'] * 2


def agreeing(rank, values):
    check_agreement('config', values[rank])
    return from_first_process(rank)


@pytest.mark.parametrize(
    'second, difference',
    [
        (dict(lr=0.2, batch=2), 'lr=0.2 instead of 0.1'),
        (dict(lr=0.1), 'batch=nothing instead of 2'),
        (dict(lr=0.1, batch=2, seed=1), 'seed=1 instead of nothing'),
    ],
)
def test_different_processes(second, difference):
    values = [dict(lr=0.1, batch=2)] * 2 + [second]
    expected = f'process 2 has another config than process 0, {difference}: '
    for message in faults(run_in_processes(3, agreeing, values)):
        assert message.startswith(expected)


def test_the_same_processes():
    assert run_in_processes(2, agreeing, [dict(lr=0.1)] * 2) == [0, 0]
    assert agreeing(0, [dict(lr=0.1)]) == 0


def with_data(rank, images, batch_size=2):
    loader = DataLoader(range(images[rank]), batch_size)
    loops = dict(train_loop=SimpleNamespace(dataloader=loader), val_loop=None)
    check_equal_data(SimpleNamespace(**loops))


def test_different_data_behind_equal_configs():
    for message in faults(run_in_processes(2, with_data, [10, 8])):
        assert message.startswith(
            'process 1 has another data set than process 0, number of images '
            'in train_dataloader=8 instead of 10: '
        )
    assert run_in_processes(2, with_data, [10, 10]) == [None, None]


def bereft(rank):
    with lost_processes():
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))


def test_a_process_that_is_killed():
    survivor, killed = run_in_processes(2, bereft)
    assert killed == -signal.SIGKILL
    (message,) = faults([survivor])
    assert message.startswith('another process of this job was lost') and '--resume' in message
    assert '/gloo/' not in message and len(message) < 300


def waiting(rank):
    init_processes('pytorch', dict(timeout=3))
    dist.barrier()
    if rank == 1:
        time.sleep(6)
        return
    with lost_processes():
        dist.all_reduce(torch.ones(1))


@pytest.mark.slow
def test_a_process_that_hangs():
    survivor, _ = launch(2, waiting)
    (message,) = faults([survivor])
    assert message.startswith('another process of this job was lost or does not answer')


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match='of another kind'), lost_processes():
        raise RuntimeError('of another kind')


# Configs


def test_settings_of_a_config():
    cfg = Config(dict(model=dict(type=Config, stages=[1, dict(depth=2)], empty=[]), lr=0.1))
    assert settings_of(cfg) == {
        'model.type': "<class 'mmengine.config.config.Config'>",
        'model.stages.0': '1',
        'model.stages.1.depth': '2',
        'model.empty': '[]',
        'lr': '0.1',
    }


def test_functions_in_a_config_are_the_same_in_all_processes():
    first, second = (settings_of(Config(dict(metric=lambda: 0))) for _ in range(2))
    assert first == second
