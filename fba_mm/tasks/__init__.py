"""The tasks that models are trained for, one file each.

Whatever the package does for one task and not for another is said in that task's file; the rest
asks :func:`task_of`. A file of this folder is found by being there.
"""

from importlib import import_module
from pkgutil import iter_modules

from .task import (
    Task,
    backbone_key,
    backbone_keys,
    num_classes_of,
    register_task,
    task_of,
    task_of_model,
    tasks,
)

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = [
    'Task',
    'backbone_key',
    'backbone_keys',
    'num_classes_of',
    'register_task',
    'task_of',
    'task_of_model',
    'tasks',
]
