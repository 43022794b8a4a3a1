"""``IterationSeedHook``: a training that is stopped and resumed is one that was never stopped."""

import itertools
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config import custom_hooks
from ..distributed import placement_of
from ..errors import LocalLearningError
from .seeded_batches import ITERATION, seed_batches, seed_generators


class _Batches:
    """Takes the place of MMEngine's iterator over a dataloader that begins anew at its end."""

    def __init__(self, dataloader: DataLoader, asked_in_vain: int):
        self._dataloader = dataloader
        self._asked_in_vain = asked_in_vain
        # Made with the first batch, for workers begin to load at once.
        self._iterator: Optional[Iterator] = None

    def __iter__(self) -> '_Batches':
        return self

    def __next__(self) -> Any:
        if self._asked_in_vain:
            self._asked_in_vain -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._dataloader)
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Called where training is resumed; these batches start at the right one."""


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Makes each random draw of a training depend on the seed and its place in it alone.

    Then there is no random state to restore, and a training that was stopped after any iteration
    and resumed is the training that was never stopped: samples are augmented alike, dropout and
    samplers of proposals draw alike. Samples are seeded where they are loaded, with any number of
    workers, and the main process in each iteration. Works with MMEngine's training loops and what
    is derived from them; :class:`FBAHook` does the same, and ``tools/train.py`` adds this hook to
    configs without that one.

    It also saves what MMEngine's checkpoints lack: the place within the epoch, the sampler's seed,
    and, in one process, gradients that are still being accumulated. Where transforms have a state
    of their own, as ``CachedMosaic`` and Albumentations' do, the log says that it is not restored.

    Example:
        >>> custom_hooks = [dict(type='IterationSeedHook')]
    """

    # Before what other hooks draw.
    priority = 'VERY_HIGH'

    _gradients: Dict[str, Tensor] = {}
    _resumed_at = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what the training goes on with."""
        self._gradients = checkpoint.get('gradients') or {}
        own = {name: p.shape for name, p in _parameters(runner)}
        if not isinstance(self._gradients, dict) or any(
            not isinstance(gradient, Tensor) or gradient.shape != own.get(name)
            for name, gradient in self._gradients.items()
        ):
            raise LocalLearningError(
                "the checkpoint's gradients are not those of the model: use another checkpoint"
            )

    def before_train(self, runner: Runner) -> None:
        """Find the place where the training goes on, and let its dataloader seed samples."""
        if any(
            isinstance(hook, IterationSeedHook)
            for hook in itertools.takewhile(lambda hook: hook is not self, runner.hooks)
        ):
            return  # Another one has.
        loop, info = runner.train_loop, runner.message_hub.runtime_info
        for key in ('sampler_seed', 'batch_in_epoch', 'batches_per_epoch'):
            if not isinstance(info.get(key, 0), int) or info.get(key, 0) < 0:
                raise LocalLearningError(
                    f"cannot resume: {key}={info[key]!r} in the checkpoint's "
                    'message_hub is no number from 0, use another checkpoint'
                )
        dataloader = loop.dataloader
        sampler: Any = getattr(dataloader, 'sampler', None)
        if hasattr(getattr(dataloader, 'batch_sampler', None), 'sampler'):
            sampler = dataloader.batch_sampler.sampler
        if isinstance(getattr(sampler, 'seed', None), int):
            # Without a seed in the config, a new process has drawn another one.
            sampler.seed = info.get('sampler_seed', sampler.seed) if runner.iter else sampler.seed
            runner.message_hub.update_info('sampler_seed', sampler.seed)
        if isinstance(sampler, InfiniteSampler):
            # It may have given indices already, and with the former seed.
            sampler.indices = sampler._indices_of_rank()
        seed = runner.seed or 0
        if isinstance(loop, IterBasedTrainLoop):
            batches = seed_batches(dataloader, seed, skip=runner.iter)
            if batches is not None:
                # Versions that don't know skip_iter() ask for batches and drop them.
                knows = hasattr(loop.dataloader_iterator, 'skip_iter')
                loop.dataloader_iterator = _Batches(dataloader, 0 if knows else runner.iter)
        elif isinstance(loop, EpochBasedTrainLoop):
            batches = seed_batches(dataloader, seed, lambda: loop.epoch)
            self._start_within_epoch(runner, batches or dataloader)
        else:
            batches = None
        if batches is None and not hasattr(dataloader, 'skip'):
            runner.logger.warning(
                f'{type(loop).__name__} and {type(dataloader).__name__}: samples are not seeded '
                'one by one, a resumed training draws other augmentations'
            )
        for name in _with_a_state(dataloader.dataset) if runner.iter else ():
            runner.logger.warning(
                f'{name} has a state of its own, which checkpoints do not hold: '
                'the resumed training draws other augmentations'
            )
        self._restore_gradients(runner)

    def _start_within_epoch(self, runner: Runner, batches: Any) -> None:
        """Skip the batches that were trained on before the checkpoint was saved."""
        info, loop = runner.message_hub.runtime_info, runner.train_loop
        place, count = info.get('batch_in_epoch', 0), len(loop.dataloader)
        runner.message_hub.update_info('batch_in_epoch', 0)
        former = info.get('batches_per_epoch', count)
        runner.message_hub.update_info('batches_per_epoch', count)
        if not runner.iter or not place:
            return
        if former != count or not hasattr(batches, 'skip'):
            runner.logger.warning(
                f'the checkpoint was saved after {place} of {former} batches of an epoch, now '
                f'there are {count}: the epoch starts from its beginning'
            )
            return
        batches.skip = self._resumed_at = place
        # The loop counts from 0 the batches that are left.
        run_iter = loop.run_iter
        loop.run_iter = lambda idx, data_batch: run_iter(idx + place, data_batch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the random generators of this process for the iteration."""
        seed_generators(ITERATION, runner.seed or 0, runner.iter, self._seed_rank())
        if get_device() != 'cpu':
            torch.manual_seed(torch.initial_seed())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Note the place within the epoch."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            runner.message_hub.update_info('batch_in_epoch', batch_idx + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """The next one starts from its beginning."""
        runner.message_hub.update_info('batch_in_epoch', 0)
        if self._resumed_at:
            self._resumed_at = 0
            del runner.train_loop.run_iter

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save gradients that are still being accumulated."""
        if (
            'optimizer' not in checkpoint
            or getattr(runner.optim_wrapper, '_accumulative_counts', 1) == 1
        ):
            return
        gradients = {name: p.grad for name, p in _parameters(runner) if p.grad is not None}
        if gradients and get_world_size() == 1:
            checkpoint['gradients'] = {name: g.cpu() for name, g in gradients.items()}
        elif gradients:
            runner.logger.warning(
                'the checkpoint is saved while gradients are accumulated, and does not hold them: '
                'to resume exactly, save after a multiple of accumulative_counts'
            )

    def _restore_gradients(self, runner: Runner) -> None:
        gradients, self._gradients = self._gradients, {}
        if runner.iter == 0:  # Only its weights were loaded.
            return
        for name, parameter in _parameters(runner):
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.device, parameter.dtype)

    def _seed_rank(self) -> int:
        """Processes that draw alike say the same."""
        return get_rank()


def _parameters(runner: Runner) -> Iterator[Tuple[str, nn.Parameter]]:
    return placement_of(runner.model).model.named_parameters()


def _with_a_state(dataset: Any) -> Iterator[str]:
    """Transforms that keep samples, as mmdet's ``CachedMosaic``, or draw from other generators."""
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        # Albumentations' transforms seed theirs from the operating system.
        if hasattr(transform, 'results_cache') or hasattr(
            getattr(transform, 'aug', transform), 'random_generator'
        ):
            yield type(transform).__name__
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None and inner is not dataset:
            yield from _with_a_state(inner)


def add_iteration_seeds(cfg: Config) -> None:
    """Let a config's training seed its iterations.

    Args:
        cfg: The config; the hook is added unless another one seeds them.
    """
    if not any(name in ('FBAHook', 'IterationSeedHook') for name, _ in custom_hooks(cfg)):
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='IterationSeedHook')]
