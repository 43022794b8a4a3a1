"""Looking at a training step: its memory, moment by moment."""
from .memory import StepMemory, StorageTracker, mark, measure_step
from .memory_plot import draw_memory
from .training_step import TrainingStep

__all__ = ['StepMemory', 'StorageTracker', 'TrainingStep', 'draw_memory', 'mark', 'measure_step']
