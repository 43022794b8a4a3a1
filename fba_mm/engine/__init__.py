"""Where local learning meets MMEngine: the hook, the optimizer wrappers, checkpoints."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .device_epoch_loop import DeviceEpochLoop
from .fba_hook import FBAHook
from .iteration_seed_hook import IterationSeedHook
from .local_accuracy_hook import LocalAccuracyHook
from .local_data_parallel import LocalDataParallel
from .local_optim_wrapper import AmpLocalOptimWrapper, LocalOptimWrapper
from .local_optim_wrapper_constructor import LocalOptimWrapperConstructor
from .local_sharded_data_parallel import LocalShardedDataParallel
from .module_parallel import LocalModuleParallel
from .split_batch_hook import SplitBatchHook
from .undivided_samplers import UndividedInfiniteSampler, UndividedSampler

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
