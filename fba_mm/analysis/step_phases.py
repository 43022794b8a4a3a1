"""Names for the parts of a training step while it is measured."""

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from ..local import LocalBackbone, local_backbones
from .memory import mark


@contextmanager
def marked_phases(model: nn.Module, optim_wrapper: OptimWrapper) -> Iterator[None]:
    """Within this context, a training step marks where it is.

    The names are ``'forward'``, ``'backward'`` and ``'update'``; where modules are trained locally,
    ``'module 1'``, ``'module 1 backward'``, ``'module 2'``, ... after a ``'forward'`` for what
    precedes the first. The last module's go on over the neck, the head and the model's own loss.

    Model and wrapper are watched from outside and left as they were.

    Args:
        model: The model that is trained.
        optim_wrapper: Its optimizer wrapper.

    Example:
        >>> step = TrainingStep(load_config('fba_mm::demo/retinanet_r34_fba_digits.py'))
        >>> batch = synthetic_batch(step.model, (2, 3, 64, 64))
        >>> with marked_phases(step.model, step.optim_wrapper):
        ...     found = measure_step(lambda: step(batch))
        >>> [name for name, _ in found.phases][:3]
        ['forward', 'module 1', 'module 1 backward']
    """
    module = ''

    def enter(name: str) -> None:
        nonlocal module
        module = name if name.startswith('module') else ''
        mark(name)

    def enter_module(name: str) -> None:
        # Without gradients the backbone looks ahead for the bank, and no module trains. Layers that
        # run again in the module's backward pass begin none.
        if torch.is_grad_enabled() and name != module:
            enter(name)

    def enter_backward() -> None:
        mark(f'{module} backward'.strip())

    with ExitStack() as stack:
        _do_before_forward(stack, model.data_preprocessor, lambda: enter('forward'))
        local = next(iter(local_backbones(model).values()), None)
        if local is not None and local.num_modules > 1:
            for number, first in enumerate(_first_layers(local), 1):
                _do_before_forward(stack, first, partial(enter_module, f'module {number}'))
        if hasattr(optim_wrapper, 'update_local'):
            _do_before(stack, optim_wrapper, 'update_local', enter_backward)
        _do_before(stack, optim_wrapper, 'backward', enter_backward)
        _do_before(stack, optim_wrapper, 'step', lambda: enter('update'))
        yield


def module_peaks(phases: List[Tuple[str, int]]) -> List[int]:
    """The most bytes during each local module, forward and backward, in order.

    Args:
        phases: Of a :class:`StepMemory` that was measured within :func:`marked_phases`.

    Example:
        >>> module_peaks([('forward', 9), ('module 1', 4), ('module 1 backward', 6)])
        [6]
    """
    peaks: Dict[int, int] = {}
    for name, peak in phases:
        if name.startswith('module '):
            number = int(name.split()[1])
            peaks[number] = max(peak, peaks.get(number, 0))
    return [peaks[number] for number in sorted(peaks)]


def _first_layers(local: LocalBackbone) -> List[nn.Module]:
    """The layer with which each module begins."""
    names = [local.segments[module[0]].submodules[0] for module in local.module_segments]
    return [local.backbone.get_submodule(name) for name in names]


def _do_before_forward(stack: ExitStack, module: nn.Module, act: Callable[[], None]) -> None:
    """Until the stack unwinds, do something before each forward pass of a module."""
    stack.callback(module.register_forward_pre_hook(lambda *_: act()).remove)


def _do_before(stack: ExitStack, owner: Any, name: str, act: Callable[[], None]) -> None:
    """Until the stack unwinds, do something before each call of a method of this one object."""
    method = getattr(owner, name)

    def call(*args, **kwargs):
        act()
        return method(*args, **kwargs)

    setattr(owner, name, call)
    stack.callback(delattr, owner, name)
