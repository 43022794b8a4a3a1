"""Looking at a training step: its memory, moment by moment, and what it consists of."""

from .memory import StepMemory, StorageTracker, mark, measure_step
from .memory_fit import MemoryPrediction, fit_modules, predict_memory, resolve_num_modules
from .memory_plot import draw_memory
from .peak_split import PeakSplit, resident_bytes
from .training_step import TrainingStep

__all__ = [
    'MemoryPrediction',
    'PeakSplit',
    'StepMemory',
    'StorageTracker',
    'TrainingStep',
    'draw_memory',
    'fit_modules',
    'mark',
    'measure_step',
    'predict_memory',
    'resident_bytes',
    'resolve_num_modules',
]
