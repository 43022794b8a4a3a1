"""Where local learning meets MMEngine: the hook, the optimizer wrappers, checkpoints."""

from ..distributed import (
    LocalDataParallel,
    LocalModuleParallel,
    LocalShardedDataParallel,
    UndividedInfiniteSampler,
    UndividedSampler,
)
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .device_epoch_loop import DeviceEpochLoop
from .fba_hook import FBAHook
from .iteration_seed_hook import IterationSeedHook
from .local_accuracy_hook import LocalAccuracyHook
from .local_optim_wrapper import AmpLocalOptimWrapper, LocalOptimWrapper
from .local_optim_wrapper_constructor import LocalOptimWrapperConstructor
from .split_batch_hook import SplitBatchHook

__all__ = [
    'AmpLocalOptimWrapper',
    'AtomicCheckpointHook',
    'DeviceEpochLoop',
    'FBAHook',
    'IterationSeedHook',
    'LocalAccuracyHook',
    'LocalDataParallel',
    'LocalModuleParallel',
    'LocalOptimWrapper',
    'LocalOptimWrapperConstructor',
    'LocalShardedDataParallel',
    'SplitBatchHook',
    'UndividedInfiniteSampler',
    'UndividedSampler',
]
