"""Two trainings never share a work directory."""

import errno
import multiprocessing
import os
import signal
from unittest import mock

import pytest

from fba_mm import LocalLearningError
from fba_mm.engine.work_dir_lock import work_dir_lock

from ..several_processes import run_in_processes


def _hold(work_dir, locked):
    with work_dir_lock(work_dir):
        locked.set()
        signal.pause()


@pytest.fixture()
def holder(tmp_path):
    """Another process that trains in a work directory."""
    context = multiprocessing.get_context('fork')
    locked = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / 'work'), locked))
    process.start()
    assert locked.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_training_is_refused_until_the_first_is_gone(holder, tmp_path):
    with pytest.raises(
        LocalLearningError,
        match=(f'work_dir .*work .process {holder.pid} on .*, since .*choose another --work-dir'),
    ), work_dir_lock(str(tmp_path / 'work')):
        pass
    with work_dir_lock(str(tmp_path / 'other')):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    for _ in range(2):
        with work_dir_lock(str(tmp_path / 'work')):
            pass


def test_a_file_system_without_locks(tmp_path):
    with mock.patch(
        'fcntl.lockf', side_effect=OSError(errno.ENOLCK, 'No locks available')
    ), mock.patch('fba_mm.engine.work_dir_lock.print_log') as log, work_dir_lock(str(tmp_path)):
        assert 'cannot be locked (No locks available)' in log.call_args.args[0]


def _enter(rank, work_dir):
    with work_dir_lock(f'{work_dir}/other'):
        pass
    with work_dir_lock(f'{work_dir}/work'):
        pass


def test_the_processes_of_a_job_take_one_lock(holder, tmp_path):
    for fault in run_in_processes(2, _enter, str(tmp_path)):
        assert isinstance(fault, LocalLearningError) and f'process {holder.pid}' in str(fault)
