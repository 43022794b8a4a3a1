"""Checkpoints: safe reading, comparison with a model, resumption, export."""

from .atomic_backend import AtomicBackend, replacing
from .comparing import CheckpointDiff, check_fit, compare, state_dict_of
from .exporting import export_checkpoint, write_checkpoint
from .own_checkpoints import OwnCheckpoints
from .resume_state import check_schedulers
from .resuming import find_resumable
from .safe_reading import UnusableCheckpoint, guard_checkpoints, load_from_local, read_checkpoint

__all__ = [
    'AtomicBackend',
    'CheckpointDiff',
    'OwnCheckpoints',
    'UnusableCheckpoint',
    'check_fit',
    'check_schedulers',
    'compare',
    'export_checkpoint',
    'find_resumable',
    'guard_checkpoints',
    'load_from_local',
    'read_checkpoint',
    'replacing',
    'state_dict_of',
    'write_checkpoint',
]
