"""Checkpoints: reading them safely, comparing them with a model, exporting them.

A checkpoint is a pickle, and a pickle from a stranger is a program. Two ways lead from one to
running code in MMEngine: unpickling (it falls back to ``weights_only=False`` when the safe way
fails), and resuming (it executes the config text that the checkpoint carries). Both are closed
here unless the user says that the file is trusted.
"""
import functools
import glob
import logging
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import LocalLearningError
from ..local import LocalBackbone
from .atomic_backend import replacing

_STATISTICS = ('current', 'max', 'mean', 'min')


def _history_method(owner: type, name: str) -> Any:
    """Stands in for ``getattr`` in checkpoints, where MMEngine's history buffers need it."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'attribute {name} of {owner}')


@functools.lru_cache(maxsize=None)
def _safe_globals() -> list:
    multiarray = (getattr(np, '_core', None) or np.core).multiarray
    numbers = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'
    dtypes = {type(np.dtype(name)) for name in numbers}
    return [
        np.ndarray, np.dtype, *dtypes, HistoryBuffer, slice,
        _named('builtins.getattr', _history_method), *[
            _named(f'numpy.{core}.multiarray.{function.__name__}', function)
            for core in ('core', '_core') for function in (multiarray._reconstruct,
                                                           multiarray.scalar)
        ]
    ]


def _named(name: str, function: Callable) -> Callable:
    """The function under the name by which a pickle asks for it."""

    def call(*args):
        return function(*args)

    call.__module__, call.__name__ = name.rsplit('.', 1)
    call.__qualname__ = call.__name__
    return call


@contextmanager
def _allowed_globals() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_safe_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class UnusableCheckpoint(LocalLearningError):
    """A checkpoint file is missing or corrupt; another one may do."""


def read_checkpoint(path: str, trust: bool = False, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint file without running code from it.

    Args:
        path: A local file.
        trust: Unpickle whatever the file asks for. Only for files whose author you know.
        map_location: As :func:`torch.load` takes it.

    Returns:
        The checkpoint. Unless trusted, it comes without ``meta['config']``, a program text that
        MMEngine would execute on resuming, and without names of files in other directories that
        MMEngine would delete.

    Raises:
        LocalLearningError: The file is missing or corrupt, or needs to run code to load.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise UnusableCheckpoint(f'checkpoint {path} not found: check its path')
    try:
        if trust:
            checkpoint = torch.load(path, map_location=map_location, weights_only=False)
        else:
            with _allowed_globals():
                checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # A faulty file may make the unpickler raise anything.
        raise _unreadable(path, error) from error
    if not isinstance(checkpoint, dict):
        raise LocalLearningError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights: give '
            'a file that MMEngine or torch.save(model.state_dict()) wrote')
    return checkpoint if trust else _disarmed(path, checkpoint)


def _disarmed(path: str, checkpoint: dict) -> dict:
    """The checkpoint without what MMEngine would execute, or delete as files of its own."""
    # dict.items(), for the file may hold an OrderedDict with a ``get`` or ``pop`` of its own.
    checkpoint = dict(dict.items(checkpoint))
    for key in ('meta', 'message_hub'):
        if key in checkpoint:
            checkpoint[key] = _plain(path, key, checkpoint[key])
    checkpoint.get('meta', {}).pop('config', None)
    hub = checkpoint.get('message_hub', {})
    if 'runtime_info' in hub:
        folder = os.path.dirname(os.path.abspath(path))
        hub['runtime_info'] = {
            key: value
            for key, value in _plain(path, 'runtime_info', hub['runtime_info']).items()
            if not _names_other_files(key, value, folder)
        }
    return checkpoint


def _plain(path: str, key: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise _corrupt(path, f'its {key} is a {type(value).__name__}')
    return dict(dict.items(value))


def _names_other_files(key: Any, value: Any, folder: str) -> bool:
    # CheckpointHook removes the former best checkpoint, directories with all that is in them.
    if str(key).startswith('best_ckpt'):
        return not (isinstance(value, str) and value.endswith('.pth')
                    and os.path.dirname(os.path.abspath(value)) == folder)
    # It removes checkpoints by number too, and any text would make a file name.
    if key == 'keep_ckpt_ids':
        return not (isinstance(value, list) and all(type(number) is int for number in value))
    return False


def _unreadable(path: str, error: Exception) -> LocalLearningError:
    asked = re.search(
        r'(?:GLOBAL|attribute|unrecognized function) <?(?:(?:built-in )?function |class )?'
        r"'?([\w.]+)", str(error))
    refused = isinstance(error, pickle.UnpicklingError) and (
        'Weights only' in str(error) or 'attribute' in str(error))
    if not (refused and asked):
        return _corrupt(path, str(error).strip() or type(error).__name__)
    return LocalLearningError(
        f'checkpoint {path} wants to run code ({asked.group(1)}) and was not loaded: if you know '
        'its author, pass --trust-checkpoint')


def _corrupt(path: str, reason: str) -> LocalLearningError:
    return UnusableCheckpoint(
        f'checkpoint {path} is corrupt or no checkpoint ({reason.splitlines()[0][:160]}): use an '
        'earlier one, or download it again')


def guard_checkpoints(trust: bool = False) -> None:
    """Make every checkpoint that this process reads be read safely, MMEngine's own reads included.

    Args:
        trust: Leave everything as it is.
    """
    if trust:
        return
    # Reads of MMEngine that don't go through the loaders below: torch itself refuses then.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    # MMEngine's own list offers the real getattr, which leads to everything.
    if hasattr(mmengine_checkpoint, 'get_torch_safe_globals'):
        mmengine_checkpoint.get_torch_safe_globals = _safe_globals
    loaders = dict(CheckpointLoader._schemes, **{'': load_from_local})
    for prefix, loader in loaders.items():
        CheckpointLoader.register_scheme(prefix, _readable_loader(loader), force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Takes the place of MMEngine's loader of this name.

    Args:
        filename: A local file.
        map_location: As :func:`torch.load` takes it.
    """
    return read_checkpoint(filename, map_location=map_location)


def _readable_loader(loader: Callable) -> Callable:

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> dict:
        try:
            with _allowed_globals():
                checkpoint = loader(filename, map_location=map_location)
        except LocalLearningError:
            raise
        except pickle.UnpicklingError as error:
            raise _unreadable(filename, error) from error
        except Exception as error:
            raise LocalLearningError(
                f'checkpoint {filename} cannot be loaded ({type(error).__name__}: '
                f'{" ".join(str(error).split())[:160]}): check its address, or download it and '
                'give its path') from error
        return _disarmed(filename, checkpoint)

    return load


class Fit(NamedTuple):
    """How a checkpoint compares with a model, in names of the model's entries.

    Attributes:
        missing: Entries that the checkpoint lacks; those of auxiliary networks are left out if
            it is a checkpoint of the unwrapped model.
        mismatched: Entries of another shape, as ``'name (shape in checkpoint, in model)'``.
        unexpected: Entries that the model lacks.
        backbone: The missing and mismatched ones that belong to a wrapped backbone, without the layers
            of a generator that enlarge.
        total: Number of the model's entries.
    """
    missing: List[str]
    mismatched: List[str]
    unexpected: List[str]
    backbone: List[str]
    total: int


def state_dict_of(checkpoint: Mapping) -> Dict[str, Tensor]:
    """The weights in a checkpoint, without the ``module.`` of distributed training.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
    """
    state_dict = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    return {
        re.sub(r'^module\.', '', key): value
        for key, value in state_dict.items() if isinstance(value, Tensor)
    }


def compare(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Fit:
    """Compare a checkpoint's weights with a model's.

    Args:
        model: The model, with or without a :class:`LocalBackbone`.
        state_dict: Weights of a checkpoint, of the model as it is or of its unwrapped form.
    """
    expected = {k: v.shape for k, v in model.state_dict().items()}
    given = {k: v.shape for k, v in state_dict.items()}
    wrapped = {
        f'{name}.' if name else '': m for name, m in model.named_modules()
        if isinstance(m, LocalBackbone)
    }
    for prefix in wrapped:
        given = LocalBackbone.wrapped_keys(given, prefix, expected)
        if not any(k.startswith(f'{prefix}auxiliary.') for k in given):
            auxiliary = f'{prefix}auxiliary.'
            expected = {k: v for k, v in expected.items() if not k.startswith(auxiliary)}
    missing = [k for k in expected if k not in given and not k.endswith('num_batches_tracked')]
    mismatched = {
        k: f'{k} ({tuple(given[k])} in the checkpoint, {tuple(expected[k])} in the model)'
        for k in expected if k in given and given[k] != expected[k]
    }
    inner = tuple(f'{prefix}backbone.' for prefix in wrapped) or ('backbone.', )
    heads = tuple(f'{prefix}backbone.{layer}.' for prefix, local_backbone in wrapped.items()
                  for layer in local_backbone.head_layers())
    backbone = [
        k for k in (*missing, *mismatched) if k.startswith(inner) and not k.startswith(heads)
    ]
    return Fit(missing, list(mismatched.values()), [k for k in given if k not in expected],
               backbone, len(expected))


def check_fit(model: nn.Module,
              path: str,
              purpose: str,
              trust: bool = False,
              optimizer: Optional[Optimizer] = None) -> None:
    """Refuse a checkpoint that isn't one of this model.

    Args:
        model: The model that it will be loaded into.
        path: A local file. Anything with a ``://`` is left to MMEngine.
        purpose: ``'test'``: every weight has to be there. ``'resume'``: those of auxiliary
            networks as well. ``'load'`` (training starts from it): those of the backbone; a head
            for other classes may differ, or a generator's layers for another scale, and MMEngine's
            log says so.
        trust: As for :func:`read_checkpoint`.
        optimizer: The one that training is to go on with, on resuming.

    Raises:
        LocalLearningError: It does not fit; or it can't be read.
    """
    if '://' in path:
        if purpose == 'resume':
            raise LocalLearningError(f'cannot resume from {path}: download it, give its path')
        return
    checkpoint = read_checkpoint(path, trust=trust)
    state_dict = state_dict_of(checkpoint)
    fit = compare(model, state_dict)
    if purpose == 'resume':
        absent = _absent(checkpoint)
        if absent:
            raise LocalLearningError(
                f'cannot resume from {path}: it has no {", ".join(absent)}; start from its weights '
                f'instead, --cfg-options load_from={path}')
        stock = any('.auxiliary.' in k for k in model.state_dict()) and not any(
            '.auxiliary.' in k for k in state_dict)
        if stock:
            raise LocalLearningError(
                f'cannot resume from {path}: it has no auxiliary networks, so it was not trained '
                f'locally; start from its weights instead, --cfg-options load_from={path}')
    faults = fit.missing + fit.mismatched
    if purpose == 'resume':
        faults += fit.unexpected
    elif purpose == 'load':
        faults = fit.backbone
    if faults:
        mend = 'give the config that it was trained with'
        if any('.backbone.' in k for k in fit.unexpected):
            mend += ', which lies beside it as a .py file'
            if purpose != 'resume':
                mend += ', or export it first with tools/export.py'
        shown = (fit.mismatched + fit.missing + fit.unexpected)[0]
        raise LocalLearningError(
            f'checkpoint {path} does not fit the model, {len(faults)} of {fit.total} entries '
            f'differ, such as {shown}: {mend}')
    if purpose == 'resume' and optimizer is not None:
        _check_optimizer(optimizer, checkpoint['optimizer'], path)
    if fit.unexpected and purpose != 'load':
        print_log(
            f'{path} has {len(fit.unexpected)} entries that the model lacks, such as '
            f'{fit.unexpected[0]}; they are ignored', 'current')


def _check_optimizer(optimizer: Optimizer, state: Mapping, path: str) -> None:
    groups = state.get('param_groups', [])
    # None and flags stand for what some versions of torch have and others lack.
    settings = {
        key for key, value in optimizer.defaults.items()
        if value is not None and not isinstance(value, bool)
    }
    own = [len(group['params']) for group in optimizer.param_groups]
    if own != [len(group['params']) for group in groups] or any(
            settings - set(group) for group in groups):
        raise LocalLearningError(
            f'cannot resume from {path}: its optimizer state is not one of '
            f'{type(optimizer).__name__} with these parameter groups; keep the optim_wrapper that '
            f'it was trained with, or start from its weights, --cfg-options load_from={path}')


def find_resumable(work_dir: str, trust: bool = False, since: float = 0.) -> Optional[str]:
    """The checkpoint to go on from: the last one that was saved, or the last usable one before it.

    Args:
        work_dir: Where ``last_checkpoint`` lies, which names the last one.
        trust: As for :func:`read_checkpoint`.
        since: Files older than that are passed over; a time in seconds since the epoch.

    Returns:
        Its path; None if there was none saved yet.

    Raises:
        LocalLearningError: There is one, but none that is usable; or it needs to run code to load.
    """
    pointer = os.path.join(work_dir, 'last_checkpoint')
    last = None
    if os.path.isfile(pointer):
        with open(pointer, encoding='utf-8', errors='replace') as file:
            last = file.read().strip()
    folders = {os.path.abspath(work_dir), os.path.dirname(os.path.abspath(last or pointer))}
    others = [path for folder in folders for path in glob.glob(os.path.join(folder, '*.pth'))
              if path != last and os.path.getmtime(path) >= since]
    if last and os.path.exists(last) and os.path.getmtime(last) < since:
        last = None
    others.sort(key=os.path.getmtime, reverse=True)
    faults = []
    for path in [last, *others] if last else others:
        try:
            absent = _absent(read_checkpoint(path, trust=trust))
            _check_sums(path)
        except UnusableCheckpoint as error:
            faults.append(str(error).rpartition(': ')[0])
            continue
        if absent and path == last:
            faults.append(f'checkpoint {path} has no {", ".join(absent)}; start from its weights '
                          f'instead, --cfg-options load_from={path}')
        if not absent:
            for fault in faults:
                print_log(f'{fault}; it is passed over', 'current', logging.WARNING)
            print_log(f'Going on from {path}', 'current')
            return path
    if faults:
        raise LocalLearningError(
            f'cannot resume in {work_dir}: {faults[0]}. There is no other: give --resume a '
            'path, or another --work-dir to start from the beginning')
    print_log(f'{work_dir} has no checkpoint yet: training starts from the beginning', 'current')
    return None


def _check_sums(path: str) -> None:
    """Refuse a file whose content is not what was written; torch itself doesn't look."""
    if zipfile.is_zipfile(path):  # Files of very old versions of torch are none.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise _corrupt(path, 'a checksum is wrong')


def _absent(checkpoint: Mapping) -> List[str]:
    """What a checkpoint lacks that training goes on from."""
    absent = [key for key in ('optimizer', 'message_hub', 'meta') if key not in checkpoint]
    return absent + [
        f'meta.{key}' for key in ('epoch', 'iter')
        if key not in checkpoint.get('meta', ('epoch', 'iter'))
    ]


def export_checkpoint(model: nn.Module, checkpoint: Mapping) -> dict:
    """Turn a checkpoint of a local-learning config into one of its stock config.

    Args:
        model: The local-learning model, for the names in it.
        checkpoint: What :func:`read_checkpoint` returned.

    Returns:
        ``state_dict`` with the stock names, without auxiliary networks; and ``meta`` without the
        config. Optimizer state and log history, which belong to the local training, stay behind.

    Raises:
        LocalLearningError: The model has no :class:`LocalBackbone`.
    """
    prefixes = [name for name, m in model.named_modules() if isinstance(m, LocalBackbone)]
    if not prefixes:
        raise LocalLearningError(
            'the config has no LocalBackbone: its checkpoints are stock ones already')
    state_dict = state_dict_of(checkpoint)
    for prefix in (f'{name}.' if name else '' for name in prefixes):
        inner, auxiliary = f'{prefix}backbone.', f'{prefix}auxiliary.'
        state_dict = {
            prefix + k[len(inner):] if k.startswith(inner) else k: v
            for k, v in state_dict.items() if not k.startswith(auxiliary)
        }
    meta = {k: v for k, v in checkpoint.get('meta', {}).items() if k != 'config'}
    return dict(meta=meta, state_dict=state_dict)


def write_checkpoint(checkpoint: dict, path: str) -> None:
    """Write a checkpoint completely, or not at all.

    Args:
        checkpoint: What to write.
        path: Where to. A file that is there is replaced in one step.

    Raises:
        LocalLearningError: It can't be written there.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError('it is a directory')
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except OSError as error:
        raise LocalLearningError(
            f'cannot write {path} ({error.strerror or error}): give another path') from error
