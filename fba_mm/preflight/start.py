"""The part of a training in which faults of a config show, and nothing can be lost."""

import logging
import random
import traceback
from contextlib import contextmanager
from typing import Any, Iterator, Tuple

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner, autocast
from torch.utils.data import DataLoader

from ..distributed import placement_of
from ..errors import LocalLearningError
from .building import readable_errors, reason_of

# Of mmdet's CocoMetric.
_COCO_ITEMS = (
    *('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l'),
    *('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000'),
)


def build_loops(runner: Runner) -> None:
    """Build the loops of training and validation, which reads the annotations.

    Args:
        runner: The runner of a config.

    Raises:
        LocalLearningError: They can't be built, or would never do anything.
    """
    with readable_errors(
        'train_dataloader or train_cfg cannot be built', 'check its dataset and the data'
    ):
        loop = runner.train_loop
    by_iter = isinstance(loop, IterBasedTrainLoop)
    _check_batches(loop.dataloader, 'train_dataloader', by_iter)
    for name in ('max_iters' if by_iter else 'max_epochs', 'val_interval'):
        value = getattr(loop, name, 1)
        if isinstance(value, (int, float)) and not value >= 1:
            raise LocalLearningError(f'train_cfg.{name}={value}: give a number from 1')
    if runner.cfg.get('val_dataloader') is None:
        return
    with readable_errors(
        'val_dataloader or val_evaluator cannot be built', 'check its dataset and the data'
    ):
        loop = runner.val_loop
    if loop is not None:
        _check_metrics(runner)
        for i, (dataloader, _) in enumerate(_validated_on(loop)):
            _check_batches(
                dataloader, f'val_dataloader (number {i + 1})' if i else 'val_dataloader'
            )


def _check_metrics(runner: Runner) -> None:
    """Refuse evaluators and hooks that ask for a metric which nothing gives, as far as names tell.

    MMDetection and MMEngine say so when the first epoch is over.
    """
    metrics = [
        metric
        for _, evaluator in _validated_on(runner.val_loop)
        for metric in getattr(evaluator, 'metrics', [])
    ]
    for metric in metrics:
        items = getattr(metric, 'metric_items', None) or ()
        unknown = [item for item in items if item not in _COCO_ITEMS]
        if unknown and type(metric).__name__ == 'CocoMetric':
            raise LocalLearningError(
                f'metric_items={list(items)} of val_evaluator has {unknown[0]!r}: take of '
                + ', '.join(_COCO_ITEMS)
            )
    prefixes = {getattr(metric, 'prefix', None) for metric in metrics}
    if not prefixes or None in prefixes:
        return
    for hook in runner.hooks:
        wanted = getattr(hook, 'key_indicators', None) if getattr(hook, 'save_best', None) else None
        for name in (*(wanted or ()), getattr(hook, 'monitor', None)):
            if (
                isinstance(name, str)
                and name != 'auto'
                and '/'.join(name.split('/')[:-1]) not in prefixes
            ):
                raise LocalLearningError(
                    f'{type(hook).__name__} waits for the metric {name!r}, but those of '
                    f'val_evaluator start with {", ".join(sorted(f"{p}/" for p in prefixes))}: '
                    "give such a name, or 'auto'"
                )


def _check_batches(dataloader: Any, where: str, by_iter: bool = False) -> None:
    """Refuse data in which there is no batch."""
    # Samplers that start again when they are through have a length all the same.
    if not isinstance(dataloader, DataLoader) or (
        by_iter and 'Infinite' in type(dataloader.sampler).__name__ and len(dataloader.dataset)
    ):
        return
    try:
        batches, images = len(dataloader), len(dataloader.dataset)
    except TypeError:  # A stream.
        return
    if not images:
        raise LocalLearningError(
            f'{where}.dataset has no images: check its ann_file, metainfo and filter_cfg'
        )
    if not batches:
        raise LocalLearningError(
            f'{where} has no batch: the images of this process are fewer than batch_size='
            f'{dataloader.batch_sampler.batch_size}, and drop_last=True ({images} images in all): '
            'set drop_last=False, or a smaller batch_size'
        )


@contextmanager
def readable_start(runner: Runner, what: str = 'training cannot start') -> Iterator[None]:
    """Say in one line what fails before the first iteration of a training or a test has ended.

    Nothing is lost by then, nor at any time of a test, and what fails is most likely the config.
    Among other things this is when schedulers, EMA's copy and the model's losses run for the first
    time; and one image is validated on, which MMEngine does only after an epoch. The traceback is
    in the log file.

    Args:
        runner: The runner that is trained, or tests, within this context.
        what: What is said of faults until then.

    Raises:
        LocalLearningError: What was raised until then.
    """
    start = _Start(what)
    runner.register_hook(start, 'VERY_LOW')
    try:
        yield
    except LocalLearningError:
        raise
    except OSError:
        raise  # The disk's, not the config's.
    except Exception as error:
        if start.is_over:
            raise
        _write_traceback(runner, error)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        advice = 'check the config, the traceback is in the log file'
        if isinstance(error, torch.cuda.OutOfMemoryError):
            advice = 'take a smaller batch_size, or more local modules'
        raise LocalLearningError(
            f'{start.what} ({reason_of(error)}; {frame.filename}:{frame.lineno}): {advice}'
        ) from error


class _Start(Hook):
    """Notes how far a training has come, and validates on one image before it."""

    is_over = False

    def __init__(self, what: str):
        self.what = what

    def before_train(self, runner: Runner) -> None:
        whole = placement_of(runner.model).is_whole
        if runner.cfg.get('val_dataloader') is not None and whole:
            self.what = 'one image was validated on before training, and failed'
            validate_one(runner)
        self.what = 'the first iteration failed'

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.is_over = True

    def after_test_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.what = 'testing failed after the first images'


def validate_one(runner: Runner) -> None:
    """Predict and evaluate the first image of each validation set; leave no trace.

    Args:
        runner: A runner whose model has its weights.
    """
    model = placement_of(runner.model).model
    was_training = model.training
    states = random.getstate(), np.random.get_state()
    loop = runner.val_loop
    with torch.random.fork_rng(), torch.no_grad(), autocast(enabled=getattr(loop, 'fp16', False)):
        model.eval()
        for dataloader, evaluator in _validated_on(loop):
            batch = dataloader.collate_fn([dataloader.dataset[0]])
            outputs = model.val_step(batch)
            # mmagic's evaluators want the whole data set first.
            if type(evaluator) is Evaluator:
                evaluator.process(data_samples=outputs, data_batch=batch)
                for metric in evaluator.metrics:
                    metric.results.clear()
        model.train(was_training)
    random.setstate(states[0])
    np.random.set_state(states[1])


def _validated_on(loop: Any) -> Iterator[Tuple[DataLoader, Any]]:
    # mmagic's loop has several.
    several = hasattr(loop, 'dataloaders')
    return zip(
        loop.dataloaders if several else [loop.dataloader],
        loop.evaluators if several else [loop.evaluator],
    )


def _write_traceback(runner: Runner, error: Exception) -> None:
    """Where a user finds it who wants it, and not on the screen."""
    record = logging.LogRecord(
        runner.logger.name,
        logging.ERROR,
        __file__,
        0,
        'The start of training failed',
        None,
        (type(error), error, error.__traceback__),
    )
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)
