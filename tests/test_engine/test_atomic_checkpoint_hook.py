"""A save that is cut short, at whatever moment, leaves the last good checkpoint."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.dist import is_main_process
from mmengine.logging import MessageHub
from mmengine.runner import save_checkpoint

from fba_mm import LocalLearningError
from fba_mm.checkpoint import AtomicBackend, find_resumable, read_checkpoint
from fba_mm.engine import AtomicCheckpointHook


class SavingRunner:
    """As much of a runner as the hook needs: its checkpoints hold the epoch, many times."""

    def __init__(self, work_dir, max_epochs=100, values=1000, resume=None):
        self.work_dir, self.max_epochs, self.values = str(work_dir), max_epochs, values
        self.epoch, self.iter, self.max_iters = 0, 0, max_epochs
        self._resume, self._load_from, self.timestamp = resume is not None, resume, 'now'
        self.logger = mock.Mock()
        self.message_hub = MessageHub(f'{work_dir}')
        if resume is not None:
            checkpoint = read_checkpoint(resume)
            self.epoch, self.iter = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
            self.message_hub.load_state_dict(checkpoint['message_hub'])
        self.train_loop = SimpleNamespace(stop_training=False)
        self.model, self.optim_wrapper = torch.nn.Module(), None

    def save_checkpoint(self, out_dir, filename, *_, meta=None, backend_args=None, **__):
        if is_main_process():
            save_checkpoint(
                dict(
                    meta=meta,
                    message_hub=self.message_hub.state_dict(),
                    optimizer={},
                    state_dict=dict(x=torch.full((self.values,), float(self.epoch))),
                ),
                os.path.join(out_dir, filename),
                backend_args=backend_args,
            )

    def train(self, hook, epochs):
        """Epochs with nothing in them but the hook."""
        if not hasattr(hook, 'file_backend'):
            hook.before_train(self)
        for _ in range(epochs):
            self.iter += 1
            hook.after_train_epoch(self)
            self.epoch += 1
        return self


def epoch_of(path) -> int:
    checkpoint = read_checkpoint(path)
    assert (checkpoint['state_dict']['x'] == checkpoint['meta']['epoch'] - 1).all()
    return checkpoint['meta']['epoch']


def files(folder) -> set:
    return {path.name for path in Path(folder).iterdir() if path.name != '.own_checkpoints'}


# What is kept


@pytest.mark.parametrize('keep, expected', [(1, {4}), (2, {3, 4}), (-1, {1, 2, 3, 4})])
def test_as_many_are_kept_as_the_config_says(keep, expected, tmp_path):
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=keep)
    SavingRunner(tmp_path).train(hook, 4)
    assert files(tmp_path) == {'last_checkpoint', *(f'epoch_{i}.pth' for i in expected)}
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')


def test_the_one_before_goes_after_the_new_one_has_come(tmp_path):
    seen = []
    put = AtomicBackend.put
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=1)
    runner = SavingRunner(tmp_path).train(hook, 1)
    with mock.patch.object(
        AtomicBackend, 'put', lambda *args: (seen.append(files(tmp_path)), put(*args))
    ):
        runner.train(hook, 2)
    assert [{'epoch_1.pth', 'last_checkpoint'}, {'epoch_2.pth', 'last_checkpoint'}] == seen


@pytest.mark.parametrize('metrics', ['accuracy', ['accuracy', 'recall']])
def test_the_best_goes_after_a_better_one_has_come(metrics, tmp_path):
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=1, save_best=metrics, rule='greater')
    runner = SavingRunner(tmp_path).train(hook, 1)
    hook.after_val_epoch(runner, dict(accuracy=1.0, recall=1.0))
    best = {name for name in files(tmp_path) if name.startswith('best')}
    assert len(best) == (1 if metrics == 'accuracy' else 2)
    runner.train(hook, 1)
    hook.after_val_epoch(runner, dict(accuracy=0.5, recall=0.5))
    assert best < files(tmp_path)
    with mock.patch.object(
        AtomicBackend, 'put', side_effect=OSError(errno.ENOSPC, 'full')
    ), pytest.raises(LocalLearningError, match='full'):
        hook.after_val_epoch(runner, dict(accuracy=2.0, recall=2.0))
    assert best < files(tmp_path)
    runner.message_hub.update_info('best_score', 1.0)
    runner.message_hub.update_info('best_score_accuracy', 1.0)
    hook.after_val_epoch(runner, dict(accuracy=2.0, recall=0.0))
    now = {name for name in files(tmp_path) if name.startswith('best_accuracy')}
    assert now == {'best_accuracy_epoch_2.pth'}
    assert ('best_recall_epoch_1.pth' in files(tmp_path)) == (metrics != 'accuracy')


# Whose files are replaced or removed


def validated(hook, runner, accuracy):
    """One epoch, and what comes of its validation."""
    runner.train(hook, 1)
    hook.after_val_epoch(runner, dict(accuracy=accuracy))
    return runner


def saving_best(keep=2):
    return AtomicCheckpointHook(
        interval=1, max_keep_ckpts=keep, save_best='accuracy', rule='greater'
    )


@pytest.fixture()
def earlier(tmp_path):
    """A training of two epochs, the second of which was the best."""
    hook, runner = saving_best(), SavingRunner(tmp_path / 'earlier')
    validated(hook, validated(hook, runner, 1.0), 2.0)
    assert files(runner.work_dir) == {
        'epoch_1.pth',
        'epoch_2.pth',
        'best_accuracy_epoch_2.pth',
        'last_checkpoint',
    }
    return Path(runner.work_dir)


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.glob('*.pth')}


def test_a_resumed_training_goes_on_with_its_own_files(earlier):
    runner = SavingRunner(earlier, resume=str(earlier / 'epoch_2.pth'))
    validated(saving_best(), runner, 3.0)
    assert files(earlier) == {
        'epoch_2.pth',
        'epoch_3.pth',
        'best_accuracy_epoch_3.pth',
        'last_checkpoint',
    }


def test_in_another_folder_it_removes_nothing_of_the_former(earlier, tmp_path):
    before = contents(earlier)
    runner = SavingRunner(tmp_path / 'other', resume=str(earlier / 'epoch_2.pth'))
    hook = saving_best(keep=1)
    validated(hook, validated(hook, runner, 3.0), 4.0)
    assert contents(earlier) == before
    assert files(tmp_path / 'other') == {
        'epoch_4.pth',
        'best_accuracy_epoch_4.pth',
        'last_checkpoint',
    }


def test_a_new_training_keeps_what_an_earlier_one_left(earlier):
    before = contents(earlier)
    (earlier / 'pretrained.pth').write_text('mine')
    runner = SavingRunner(earlier)
    hook = saving_best(keep=1)
    validated(hook, validated(hook, runner, 1.0), 2.0)
    assert files(earlier) == {
        'epoch_2.pth',
        'best_accuracy_epoch_2.pth',
        'last_checkpoint',
        'pretrained.pth',
        'before_now',
    }
    assert contents(earlier / 'before_now') == before
    (warning,) = [call.args[0] for call in runner.logger.warning.call_args_list]
    assert 'such as best_accuracy_epoch_2.pth: they are kept in' in warning
    # Before the new one has saved anything, there is nothing to go on from.
    hook = saving_best()
    runner = SavingRunner(earlier)
    runner.timestamp = 'later'
    hook.before_train(runner)
    (earlier / 'pretrained.pth').unlink()
    assert find_resumable(str(earlier)) is None


@pytest.mark.parametrize('recorded', [True, False])
def test_a_strangers_file_has_nothing_removed_or_replaced(recorded, earlier):
    """A checkpoint says which files its training wrote; it is not taken at its word."""
    checkpoint = read_checkpoint(str(earlier / 'epoch_1.pth'))
    checkpoint['message_hub']['runtime_info'].update(
        keep_ckpt_ids=[1, 2], best_ckpt=str(earlier / 'best_accuracy_epoch_2.pth')
    )
    torch.save(checkpoint, earlier / 'stranger.pth')
    if not recorded:  # By MMEngine's own hook.
        (earlier / '.own_checkpoints').unlink()
    before = contents(earlier)
    hook, runner = saving_best(keep=1), SavingRunner(earlier, resume=str(earlier / 'stranger.pth'))
    validated(hook, validated(hook, runner, 3.0), 4.0)
    kept = {**contents(earlier), **contents(earlier / 'before_now')}
    assert {name: kept[name] for name in before} == before


def test_other_backends_are_left_alone():
    assert AtomicCheckpointHook().backend_args == dict(backend='atomic')
    remote = dict(backend='petrel')
    assert AtomicCheckpointHook(backend_args=remote).backend_args == remote
    assert AtomicCheckpointHook(out_dir='s3://checkpoints').backend_args is None


# What goes wrong


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_full_disk_ends_training_with_a_line(by_epoch, tmp_path):
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=1, by_epoch=by_epoch)
    runner = SavingRunner(tmp_path)
    save = hook.after_train_epoch if by_epoch else lambda r: hook.after_train_iter(r, 0, None, None)
    hook.before_train(runner)
    save(runner)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    runner.epoch = runner.iter = 1
    with mock.patch(
        'os.fsync', side_effect=OSError(errno.ENOSPC, 'No space left on device')
    ), pytest.raises(
        LocalLearningError,
        match=(r'No space left on device\), .*_1.pth is as it was: make room .*--resume'),
    ):
        save(runner)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def filled(work_dir) -> None:
    runner = SavingRunner(work_dir)
    hook = AtomicCheckpointHook(interval=1, max_keep_ckpts=1)
    runner.train(hook, 2)
    # Files can't grow beyond this from now on.
    size = os.path.getsize(os.path.join(work_dir, 'epoch_2.pth'))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    runner.values *= 10
    try:
        runner.train(hook, 1)
    except LocalLearningError as error:
        Path(work_dir, 'error').write_text(str(error))


def test_a_file_that_may_not_grow(tmp_path):
    process = multiprocessing.get_context('fork').Process(target=filled, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert 'File too large' in (tmp_path / 'error').read_text()
    assert files(tmp_path) == {'error', 'epoch_2.pth', 'last_checkpoint'}
    assert epoch_of(find_resumable(str(tmp_path))) == 2


def saving(work_dir) -> None:
    runner = SavingRunner(work_dir, max_epochs=10**6, values=500_000)
    runner.train(AtomicCheckpointHook(interval=1, max_keep_ckpts=1), 10**6)


@pytest.mark.slow
def test_a_kill_at_any_moment(tmp_path):
    """The work directory always has a whole checkpoint, the last or the one before."""
    chance = random.Random(0)
    attempt = cut_short = 0
    # How many kills hit a save depends on what else the machine does.
    while attempt < 20 or cut_short < 5:
        attempt += 1
        assert attempt <= 200, 'hardly any kill hit a save'
        work_dir = tmp_path / str(attempt)
        process = multiprocessing.get_context('fork').Process(target=saving, args=(work_dir,))
        process.start()
        deadline = time.monotonic() + 60
        while not (work_dir / 'last_checkpoint').exists():
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        numbers = sorted(int(path.stem[6:]) for path in work_dir.glob('epoch_*.pth'))
        assert [epoch_of(str(work_dir / f'epoch_{i}.pth')) for i in numbers] == numbers
        assert epoch_of(find_resumable(str(work_dir))) >= numbers[-1] - 1
        cut_short += any(name.endswith('.tmp') for name in files(work_dir))
