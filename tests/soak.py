"""A long training with validation, EMA and accumulation: live tensors and memory stay flat.

python -m tests.soak --iterations 5000
"""

import argparse
import gc
import os
import tempfile
from pathlib import Path
from typing import List, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from fba_mm import command_line, localize

from .config_fuzz import runtime
from .test_tools.in_process import untouched_process


class Reading(NamedTuple):
    """What there is at one moment, garbage aside.

    Attributes:
        iteration: How many have been.
        tensors: Number of live tensors.
        nbytes: Of their storages.
        resident: Bytes of the process in memory.
    """

    iteration: int
    tensors: int
    nbytes: int
    resident: int


def read(iteration: int) -> Reading:
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    resident = pages * os.sysconf('SC_PAGE_SIZE')
    return Reading(iteration, len(tensors), sum(storages.values()), resident)


class Meter(Hook):
    """Reads after every so many iterations, once all other hooks are done."""

    priority = 'LOWEST'

    def __init__(self, every: int):
        self.every = every
        self.readings: List[Reading] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.every_n_train_iters(runner, self.every):
            self.readings.append(read(runner.iter + 1))


def soak(folder: Path, iterations: int, every: int, scope: str = 'past') -> List[Reading]:
    """Train a small classifier in three modules, and read in between. See :func:`train`."""
    meter = Meter(every)
    train(folder, iterations, every, scope, meter)
    return meter.readings


def train(folder: Path, iterations: int, every: int, scope: str, *hooks: Hook) -> Runner:
    """Train a small classifier in three modules, with EMA and accumulation.

    Args:
        folder: Of checkpoints and logs.
        iterations: Of training; a validation comes after each ``every``.
        every: Iterations between readings.
        scope: Of the feature bank.
        *hooks: More hooks.
    """
    cfg = runtime(
        'mmpretrain',
        dict(
            type='fba_mm.HandwrittenDigits',
            split='train',
            indices=8,
            pipeline=[dict(type='PackInputs')],
        ),
        dict(type='Accuracy'),
        data_preprocessor=dict(num_classes=10, mean=[80.0] * 3, std=[90.0] * 3),
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='CifarResNet', depth=8, base_channels=4),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=10,
                in_channels=16,
                loss=dict(type='CrossEntropyLoss'),
            ),
        ),
        work_dir=str(folder),
    )
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=every)
    cfg['param_scheduler'] = []
    cfg['log_processor'] = dict(window_size=10, by_epoch=False)
    cfg['optim_wrapper']['accumulative_counts'] = 2
    cfg['train_dataloader']['sampler'] = dict(type='InfiniteSampler', shuffle=True)
    cfg['default_hooks']['checkpoint'].update(by_epoch=False, interval=every, max_keep_ckpts=1)
    cfg['default_hooks']['logger'].update(interval=every)
    with untouched_process():
        runner = command_line.build_runner(localize(Config(cfg), num_modules=3, scope=scope))
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
    return runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--iterations', type=int, default=5000)
    parser.add_argument('--every', type=int, default=250)
    parser.add_argument('--scope', default='past')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(Path(folder), args.iterations, args.every, args.scope)
    for reading in readings:
        print(
            f'{reading.iteration:6} iterations: {reading.tensors} tensors, '
            f'{reading.nbytes / 1e6:.3f} MB, process {reading.resident / 1e6:.1f} MB'
        )


if __name__ == '__main__':
    main()
