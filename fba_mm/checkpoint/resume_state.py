"""What a checkpoint holds beside weights that training goes on from."""

import copy
from typing import Any, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor
from torch.optim import Optimizer

from ..errors import LocalLearningError


def absent_entries(checkpoint: Mapping) -> List[str]:
    """Name what a checkpoint lacks that training goes on from.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
    """
    absent = [key for key in ('optimizer', 'message_hub', 'meta') if key not in checkpoint]
    return absent + [
        f'meta.{key}'
        for key in ('epoch', 'iter')
        if key not in checkpoint.get('meta', ('epoch', 'iter'))
    ]


def check_resume_state(checkpoint: Mapping, path: str, optimizer: Optional[Optimizer]) -> None:
    """Refuse a checkpoint whose state training can't go on from.

    Args:
        checkpoint: What :func:`read_checkpoint` returned, no entry absent.
        path: Of its file, for messages.
        optimizer: The one that training is to go on with; it is left as it is.

    Raises:
        LocalLearningError: Something is of another kind, or belongs to another optimizer.
    """
    start = f'start from its weights, --cfg-options load_from={path}'
    for fault in (_counter_fault(checkpoint['meta']), _log_fault(checkpoint['message_hub'])):
        if fault is not None:
            raise LocalLearningError(f'cannot resume from {path}: {fault}; {start}')
    if optimizer is not None:
        fault = _optimizer_fault(optimizer, checkpoint['optimizer'])
        if fault is not None:
            raise LocalLearningError(
                f'cannot resume from {path}: its optimizer state is not one of '
                f'{type(optimizer).__name__} with these parameter groups{fault}; keep the '
                f'optim_wrapper that it was trained with, or {start}'
            )


def check_schedulers(schedulers: Union[list, dict, None], states: Any) -> None:
    """Refuse states of parameter schedulers that belong to other ones.

    Args:
        schedulers: The runner's.
        states: A checkpoint's ``param_schedulers``.

    Raises:
        LocalLearningError: They differ in number, or in what they keep.
    """
    if not isinstance(schedulers, dict):  # They are where there are several optimizers.
        schedulers, states = dict(all=schedulers or []), dict(all=states)
    for name, some in schedulers.items():
        fault = _schedulers_fault(some, states.get(name) if isinstance(states, dict) else None)
        if fault is not None:
            raise LocalLearningError(
                f'cannot resume: the checkpoint has {fault}; keep the param_scheduler that it was '
                'trained with, or start from its weights with load_from instead of --resume'
            )


def _schedulers_fault(schedulers: list, states: Any) -> Optional[str]:
    if not isinstance(states, list) or len(states) != len(schedulers):
        count = len(states) if isinstance(states, list) else 'no'
        return f'{count} parameter schedulers, and the config {len(schedulers)}'
    for scheduler, state in zip(schedulers, states):
        kind = type(scheduler).__name__
        if not isinstance(state, dict) or 'last_step' not in state:
            return f'no state of a {kind}'
        for key, value in scheduler.state_dict().items():
            # What is unset in a new one may be set later; other versions may have other entries.
            if value is not None and key in state and _family(value) != _family(state[key]):
                return f'a {type(state[key]).__name__} as {key} of a {kind}'
    return None


def _family(value: Any) -> Any:
    return 'number' if _is_number(value) else type(value)


def _counter_fault(meta: Mapping) -> Optional[str]:
    for key in ('epoch', 'iter'):
        if type(meta[key]) is not int or meta[key] < 0:
            return f'its meta.{key}={meta[key]!r} is no number of passes over data'
    return None


def _log_fault(hub: Mapping) -> Optional[str]:
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub.get(key), dict):
            return f'its message_hub has no dict {key}'
    for name, buffer in hub['log_scalars'].items():
        # MMEngine skips what is no buffer.
        if isinstance(buffer, HistoryBuffer) and not _is_numeric(buffer):
            return f'the history of {name} in its message_hub is none of numbers'
    for name, value in hub['runtime_info'].items():
        if str(name).startswith('best_score') and not _is_number(value):
            return f'{name} in its message_hub is a {type(value).__name__}'
    return None


def _is_numeric(buffer: HistoryBuffer) -> bool:
    values, counts = (getattr(buffer, f'_{kind}_history', None) for kind in ('log', 'count'))
    return (
        isinstance(values, np.ndarray)
        and isinstance(counts, np.ndarray)
        and values.ndim == 1
        and counts.shape == values.shape
        and values.dtype.kind in 'biuf'
        and counts.dtype.kind in 'biuf'
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (
        getattr(value, 'ndim', None) == 0
        and getattr(value, 'item', None) is not None
        and isinstance(value.item(), (int, float))
    )


def _optimizer_fault(optimizer: Optimizer, state: Any) -> Optional[str]:
    """Where an optimizer's state doesn't fit, '' if that can't be said, None if it fits."""
    groups = state.get('param_groups') if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(state.get('state'), dict):
        return ''
    # None and flags stand for what some versions of torch have and others lack.
    settings = {
        key: value
        for key, value in optimizer.defaults.items()
        if value is not None and not isinstance(value, bool)
    }
    own = [len(group['params']) for group in optimizer.param_groups]
    if not all(
        isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups
    ) or own != [len(group['params']) for group in groups]:
        return ''
    for group in groups:
        for key, value in settings.items():
            if key not in group or _is_number(value) != _is_number(group[key]):
                return f' (as to {key})'
    reference = _state_after_a_step(optimizer)
    if reference is None:
        return None
    indices = [i for group in groups for i in group['params']]
    if sorted(map(str, indices)) != sorted(map(str, range(sum(own)))):
        return ''
    place = {index: i for i, index in enumerate(indices)}
    for index, entry in state['state'].items():
        expected = reference.get(place.get(index))
        if index not in place or not isinstance(entry, dict):
            return f' (state of {index!r})'
        fault = _entry_fault(expected or {}, entry)
        if fault is not None:
            return f' (parameter {place[index]}, {fault})'
    return None


def _state_after_a_step(optimizer: Optimizer) -> Optional[dict]:
    """What the optimizer keeps of each parameter, or None if it can't be stepped like this."""
    probe = copy.deepcopy(optimizer)
    for group in probe.param_groups:
        for parameter in group['params']:
            parameter.grad = torch.zeros_like(parameter)
    try:
        probe.step()
    except Exception:  # An optimizer of the config's: LBFGS wants a closure, others find zeros odd.
        return None
    # In the order of the parameters, whatever the optimizer calls them.
    state = probe.state_dict()
    indices = [i for group in state['param_groups'] for i in group['params']]
    return {i: state['state'].get(index, {}) for i, index in enumerate(indices)}


def _entry_fault(expected: Mapping, entry: Mapping) -> Optional[str]:
    for key, value in expected.items():
        given = entry.get(key)
        if value is None or (key in entry and given is None):
            continue
        if isinstance(value, Tensor) and value.ndim:
            if (
                not isinstance(given, Tensor)
                or given.shape != value.shape
                or (given.is_floating_point() != value.is_floating_point())
            ):
                return f'{key} of {_form(given)} instead of {_form(value)}'
        # Counters were numbers in older versions of torch, and are tensors now.
        elif _is_number(value) and not _is_number(given):
            return f'{key} of {_form(given)} instead of a number'
    return None


def _form(value: Any) -> Union[str, Sequence[int]]:
    if isinstance(value, Tensor):
        return f'{tuple(value.shape)} {str(value.dtype).replace("torch.", "")}'
    return type(value).__name__
