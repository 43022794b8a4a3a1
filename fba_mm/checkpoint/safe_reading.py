"""Reading checkpoints without running code from them.

A checkpoint is a pickle, and a pickle from a stranger is a program. Two ways lead from one to
running code in MMEngine: unpickling (it falls back to ``weights_only=False`` when the safe way
fails), and the config texts that the checkpoint carries, which are programs that resuming and
inferencers execute. Both are closed here unless the user says that the file is trusted.
"""

import functools
import os
import pickle
import zipfile
from typing import Any, Callable, Mapping
from unittest import mock

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from ..compat import torch_versions
from ..errors import LocalLearningError
from .checksums import check_sums
from .safe_unpickler import UnsafePickle, load_safely

# Config texts are in ``meta``, and in the message hub, from where they go on into checkpoints of
# a training that is resumed, and to whoever builds a model from those.
_TEXTS = ('config', 'cfg')


class UnusableCheckpoint(LocalLearningError):
    """A checkpoint file is missing or corrupt; another one may do."""


def read_checkpoint(path: str, trust: bool = False, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint file without running code from it.

    Args:
        path: A local file.
        trust: Unpickle whatever the file asks for. Only for files whose author you know.
        map_location: As :func:`torch.load` takes it.

    Returns:
        The checkpoint. Unless trusted, it comes without config texts, which MMEngine would
        execute, and without names of files in other directories, which it would delete.

    Raises:
        LocalLearningError: The file is missing or corrupt (its checksums are compared), or needs to
            run code to load.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise UnusableCheckpoint(f'checkpoint {path} not found: check its path')
    try:
        check_sums(path)
        if trust:
            checkpoint = torch.load(path, map_location=map_location, weights_only=False)
        else:
            checkpoint = load_safely(path, map_location)
    except Exception as error:  # A faulty file may make the unpickler raise anything.
        raise _unreadable(path, error) from error
    if not isinstance(checkpoint, dict):
        raise LocalLearningError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights: give '
            'a file that MMEngine or torch.save(model.state_dict()) wrote'
        )
    # Where state_dict_of() looks for them.
    for key in ('state_dict', 'model'):
        if key in checkpoint:
            if not isinstance(checkpoint[key], Mapping):
                raise corrupt_checkpoint(path, f'its {key} is a {type(checkpoint[key]).__name__}')
            break
    return checkpoint if trust else _disarmed(path, checkpoint)


def _disarmed(path: str, checkpoint: dict) -> dict:
    """The checkpoint without what MMEngine would execute, or delete as files of its own."""
    # dict.items(), for the file may hold an OrderedDict with a ``get`` or ``pop`` of its own.
    checkpoint = dict(dict.items(checkpoint))
    for key in ('meta', 'message_hub'):
        if key in checkpoint:
            checkpoint[key] = _plain(path, key, checkpoint[key])
    for key in _TEXTS:
        checkpoint.get('meta', {}).pop(key, None)
    hub = checkpoint.get('message_hub', {})
    if 'runtime_info' in hub:
        folder = os.path.dirname(os.path.abspath(path))
        hub['runtime_info'] = {
            key: value
            for key, value in _plain(path, 'runtime_info', hub['runtime_info']).items()
            if key not in _TEXTS and not _names_other_files(key, value, folder)
        }
    return checkpoint


def _plain(path: str, key: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise corrupt_checkpoint(path, f'its {key} is a {type(value).__name__}')
    return dict(dict.items(value))


def _names_other_files(key: Any, value: Any, folder: str) -> bool:
    # CheckpointHook removes the former best checkpoint, directories with all that is in them.
    if str(key).startswith('best_ckpt'):
        return not (
            isinstance(value, str)
            and value.endswith('.pth')
            and os.path.dirname(os.path.abspath(value)) == folder
        )
    # It removes checkpoints by number too, and any text would make a file name.
    if key == 'keep_ckpt_ids':
        return not (isinstance(value, list) and all(type(number) is int for number in value))
    return False


def _unreadable(path: str, error: Exception) -> LocalLearningError:
    if not isinstance(error, UnsafePickle):
        return corrupt_checkpoint(path, str(error).strip() or type(error).__name__)
    return LocalLearningError(
        f'checkpoint {path} wants to run code ({error.asked}) and was not loaded: if you know '
        'its author, pass --trust-checkpoint'
    )


def corrupt_checkpoint(path: str, reason: str) -> LocalLearningError:
    """The error for a checkpoint that cannot be read.

    Args:
        path: The file.
        reason: What was found.
    """
    return UnusableCheckpoint(
        f'checkpoint {path} is corrupt or no checkpoint ({reason.splitlines()[0][:160]}): use an '
        'earlier one, or download it again'
    )


def guard_checkpoints(trust: bool = False) -> None:
    """Make every checkpoint that this process reads be read safely, MMEngine's own reads included.

    Args:
        trust: Leave everything as it is.
    """
    if trust:
        return
    # Reads that don't go through the loaders below: torch itself refuses then, or should.
    if not torch_versions.REFUSES_CODE:
        torch.load = _load_as_torch
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    # MMEngine's own list offers the real getattr, which leads to everything.
    if hasattr(mmengine_checkpoint, 'get_torch_safe_globals'):
        mmengine_checkpoint.get_torch_safe_globals = list
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


def _load_as_torch(f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
    try:
        check_sums(f)
    except zipfile.BadZipFile as error:
        # A file that was downloaded once, and lies where the message says.
        raise corrupt_checkpoint(getattr(f, 'name', f), str(error)) from error
    return load_safely(f, map_location)


def _readable_loader(loader: Callable) -> Callable:

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> dict:
        try:
            with mock.patch.object(torch, 'load', _load_as_torch):
                checkpoint = loader(filename, map_location=map_location)
        except LocalLearningError:
            raise
        except pickle.UnpicklingError as error:
            raise _unreadable(filename, error) from error
        except Exception as error:
            raise LocalLearningError(
                f'checkpoint {filename} cannot be loaded ({type(error).__name__}: '
                f'{" ".join(str(error).split())[:160]}): check its address, or download it and '
                'give its path'
            ) from error
        return _disarmed(filename, checkpoint)

    return load
