"""``AtomicCheckpointHook``: at any moment, the last good checkpoint can be gone on from."""

import difflib
import inspect
import os
import shutil
from collections import deque
from typing import Dict, Optional

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..checkpoint import OwnCheckpoints, check_schedulers, replacing
from ..distributed import placement_of, weight_averages
from ..distributed.processes import from_first_process
from ..errors import LocalLearningError


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, which survives that its process is killed or the disk full.

    Checkpoints are written beside their place and moved there when they are complete, and outdated
    ones are removed after that, not before. Only files that this training wrote, before it was
    resumed or since, are replaced or removed, whatever paths a checkpoint names: those that an
    earlier training left in the folder are moved to ``before_<time stamp>`` in it.
    ``tools/train.py`` puts this hook in the place of MMEngine's where checkpoints are local files.

    Args:
        **kwargs: Arguments of ``CheckpointHook``.

    Raises:
        LocalLearningError: ``CheckpointHook`` has no such argument; in training, in all processes,
            if a checkpoint can't be written.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1))
    """

    # Also of modules in other processes, or in pieces in all of them.
    saves_whole_model = True

    def __init__(self, **kwargs):
        # MMEngine's hook takes any name, and fails when it saves the first checkpoint.
        known = inspect.signature(CheckpointHook.__init__).parameters
        for name in kwargs.keys() - known.keys():
            near = difflib.get_close_matches(name, known, 1)
            raise LocalLearningError(
                f'default_hooks.checkpoint.{name} is no setting of CheckpointHook: '
                + (f'is {near[0]!r} meant?' if near else 'leave it out')
            )
        if kwargs.get('backend_args') is None and '://' not in (kwargs.get('out_dir') or ''):
            kwargs['backend_args'] = dict(backend='atomic')
        super().__init__(**kwargs)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to resume with the state of other parameter schedulers."""
        if not runner._resume:
            return
        if 'param_schedulers' in checkpoint:
            check_schedulers(runner.param_schedulers, checkpoint['param_schedulers'])
        elif runner.param_schedulers:
            runner.logger.warning('the checkpoint has no param_schedulers: they start anew')

    def before_train(self, runner) -> None:
        """Settle where checkpoints go, and which of those that are there are this training's."""
        # MMEngine's method removes what the checkpoint, whoever wrote it, says is outdated.
        steps = runner.message_hub.runtime_info.pop('keep_ckpt_ids', [])
        super().before_train(runner)
        self._own = OwnCheckpoints(
            self.out_dir,
            os.path.join(self.out_dir, f'before_{runner.timestamp}'),
            local=isinstance(self.file_backend, LocalBackend),
        )
        if not from_first_process(self._continues(runner)):
            steps = []
            barrier()  # Other processes may be reading a checkpoint that lies there.
            self._try(self._set_all_aside, runner)
        self.keep_ckpt_ids = deque(
            step for step in steps if self.filename_tmpl.format(step) in self._own
        )

    def _continues(self, runner) -> bool:
        """Whether this is a training that wrote to its folder before it was resumed."""
        if not runner._resume or runner.iter == 0:
            return False
        source = runner._load_from
        if source is None:  # Named by last_checkpoint.
            return True
        folder, name = os.path.split(os.path.abspath(source))
        return os.path.realpath(folder) == os.path.realpath(self.out_dir) and (
            name in self._own or not self._own.recorded
        )

    def after_train_epoch(self, runner) -> None:
        """Save a checkpoint if one is due."""
        self._try(super().after_train_epoch, runner)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Save a checkpoint if one is due."""
        if not self.by_epoch and self._is_due(runner):
            self._try(super().after_train_iter, runner, *args, **kwargs)

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Save a checkpoint if it is the best."""
        self._try(super().after_val_epoch, runner, metrics)

    def _is_due(self, runner) -> bool:
        return self.every_n_train_iters(runner, self.interval, self.save_begin) or (
            self.save_last and self.is_last_train_iter(runner)
        )

    def _try(self, save, runner, *args, **kwargs) -> None:
        """Only the first process writes; all stop if it can't."""
        before, fault = self.last_ckpt, None
        try:
            save(runner, *args, **kwargs)
        except OSError as error:
            fault = error.strerror or str(error)
        fault = from_first_process(fault)
        if fault is not None:
            kept = f'{before} is as it was' if before else 'there is none before this one'
            raise LocalLearningError(
                f'a checkpoint cannot be written to {self.out_dir} ({fault}), {kept}: make room '
                'there, and go on with --resume'
            )

    def _set_all_aside(self, runner) -> None:
        if not is_main_process():
            return
        templates = [self.filename_tmpl, 'epoch_{}.pth', 'iter_{}.pth']
        moved = self._own.set_all_aside(templates)
        if not moved:
            return
        pointer = os.path.join(runner.work_dir, 'last_checkpoint')
        if os.path.isfile(pointer):
            shutil.move(pointer, self._own.aside)
        runner.logger.warning(
            f'{self.out_dir} has checkpoints of an earlier training, such as {moved[0]}: they are '
            f'kept in {self._own.aside}'
        )

    def _make_way(self, name: str) -> None:
        """What another training wrote under that name is kept elsewhere."""
        if is_main_process():
            self._own.set_aside(name)
            self._own.add(name)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            steps = [*self.keep_ckpt_ids, step]
            outdated, kept = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        self._make_way(name)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        placement = placement_of(runner.model)
        with placement.whole_model(runner.optim_wrapper, weight_averages(runner)):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        if is_main_process():
            with replacing(os.path.join(runner.work_dir, 'last_checkpoint')) as file:
                file.write(self.last_ckpt.encode())
            for old in outdated:
                self._remove(
                    self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                )

    def _save_best_checkpoint(self, runner, metrics: Dict[str, float]) -> None:
        if not self.save_best:
            return
        absent = [key for key in self.key_indicators if key not in (*metrics, 'auto')]
        if absent and metrics:
            runner.logger.warning(
                f'No best checkpoint: save_best={absent[0]!r} is none of {", ".join(metrics)}'
            )
            return
        # MMEngine's method removes the best one so far, if it knows of it, before it saves another.
        single = len(self.key_indicators) == 1
        before = dict(best=self.best_ckpt_path) if single else dict(self.best_ckpt_path_dict)
        self._set_best(dict.fromkeys(before))
        name = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        for key in self.key_indicators:
            key = next(iter(metrics)) if key == 'auto' else key
            self._make_way(f'best_{key}_{name}'.replace('/', '_'))
        try:
            with placement_of(runner.model).whole_weights():
                super()._save_best_checkpoint(runner, metrics)
        except OSError:
            self._set_best(before)
            raise
        after = dict(best=self.best_ckpt_path) if single else self.best_ckpt_path_dict
        self._set_best({key: after[key] or path for key, path in before.items()})
        for key, path in before.items():
            if path and after[key] and after[key] != path and is_main_process():
                self._remove(path)

    def _set_best(self, paths: Dict[str, Optional[str]]) -> None:
        if len(self.key_indicators) == 1:
            (self.best_ckpt_path,) = paths.values()
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, path: str) -> None:
        """Remove a checkpoint that another one takes the place of, if this training wrote it."""
        folder, name = os.path.split(path)
        own = os.path.realpath(folder) == os.path.realpath(self.out_dir) and name in self._own
        if own and self.file_backend.isfile(path):
            self.file_backend.remove(path)
