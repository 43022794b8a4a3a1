"""Several processes: which has what of a model, what travels between them, how they fail together.

Knows the method and torch.distributed; of optimizer wrappers, that they take a reducer. Everything
else asks :func:`placement_of` for the :class:`Placement` of a model.
"""

from .data_parallel import DataParallel, LocalDataParallel
from .gradient_reducer import GradientReducer
from .module_parallel import LocalModuleParallel, ModuleParallel
from .placement import PlacedModel, Placement, Whole, placement_of, weight_averages
from .sharded_data_parallel import LocalShardedDataParallel, Sharded
from .sharded_reducer import ShardedReducer
from .undivided_samplers import UndividedInfiniteSampler, UndividedSampler

__all__ = [
    'DataParallel',
    'GradientReducer',
    'LocalDataParallel',
    'LocalModuleParallel',
    'LocalShardedDataParallel',
    'ModuleParallel',
    'PlacedModel',
    'Placement',
    'Sharded',
    'ShardedReducer',
    'UndividedInfiniteSampler',
    'UndividedSampler',
    'Whole',
    'placement_of',
    'weight_averages',
]
