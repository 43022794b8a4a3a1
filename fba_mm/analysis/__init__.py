"""Looking at a training step: its memory, moment by moment, and what it consists of."""
from .memory import StepMemory, StorageTracker, mark, measure_step
from .memory_plot import draw_memory
from .peak_split import PeakSplit, resident_bytes
from .training_step import TrainingStep

__all__ = [
    'PeakSplit', 'StepMemory', 'StorageTracker', 'TrainingStep', 'draw_memory', 'mark',
    'measure_step', 'resident_bytes'
]
