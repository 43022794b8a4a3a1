"""Unpickling what checkpoints consist of, and nothing else.

``torch.load(weights_only=True)`` means another thing in each version of torch: before 2.4 it knows
neither numpy's arrays nor a way to add them, before 2.6 it hands TorchScript archives on to code
that runs them, and before 2.10 it believes what a file says of a tensor's size. So the pickle is
read here, in the same way in all of them; torch reads the tensors' bytes. Dense tensors alone: the
indices of sparse ones may point anywhere, and not every version looks at them.

What a pickle can do is limited by instruction: it may name only what stands in a table, call only
what stands there as callable, add items only to the built-in containers, and set the state only of
arrays, their data types, ordered dictionaries and MMEngine's history buffers. Each of these states
is checked before it is set.
"""

import functools
import os
import pickle
import tarfile
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from types import SimpleNamespace
from typing import Any, BinaryIO, Callable, Dict, Optional, Union
from unittest import mock

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..compat.torch_versions import sizes_of_records

_torch_load = torch.load

_STATISTICS = ('current', 'max', 'mean', 'min')
_NUMBERS_AND_TEXTS = 'biufcSU'


class UnsafePickle(pickle.UnpicklingError):
    """A pickle asks for something that checkpoints don't need.

    Args:
        asked: What it asks for, in a word or two.
    """

    def __init__(self, asked: str):
        super().__init__(f'the pickle asks for {asked}')
        self.asked = asked


def load_safely(file: Union[str, os.PathLike, BinaryIO], map_location: Any = None) -> Any:
    """``torch.load`` that runs no code of the file's.

    Args:
        file: Its path, or the open file.
        map_location: As :func:`torch.load` takes it.

    Raises:
        UnsafePickle: The file asks for something that checkpoints don't need.

    Example:
        >>> checkpoint = load_safely('epoch_12.pth', 'cpu')
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return load_safely(opened, map_location)
    sizes = None
    file.seek(0)
    if file.read(4) == b'PK\x03\x04':  # By which torch tells an archive.
        sizes = sizes_of_records(file)
    elif _is_tar(file):
        # A format from before torch 0.2, which is unpacked to files.
        raise UnsafePickle('unpacking a tar archive')
    file.seek(0)
    module = SimpleNamespace(
        __name__=__name__,
        Unpickler=type('Unpickler', (_Unpickler,), dict(sizes=sizes)),
        load=lambda *args, **kwargs: _Unpickler(*args, **kwargs).load(),
    )
    # With that variable, torch takes its own unpickler and none else.
    with mock.patch.dict(os.environ), warnings.catch_warnings(), mock.patch.object(
        torch.jit, 'load', _refuse_torchscript
    ):
        os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
        warnings.filterwarnings('ignore', message='.*TorchScript')
        return _torch_load(file, map_location, pickle_module=module, weights_only=False)


def _is_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        tarfile.open(fileobj=file).close()
    except (tarfile.TarError, EOFError, OSError):
        return False
    return True


def _refuse_torchscript(*args: Any, **kwargs: Any) -> None:
    raise UnsafePickle('TorchScript')


class _Unpickler(pickle._Unpickler):
    """Python's own, in Python, without the instructions that lead to code."""

    dispatch = dict(pickle._Unpickler.dispatch)
    sizes: Optional[Dict[str, int]] = None

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
        path = f'{module}.{name}'
        for table in (_callables(), _values()):
            if path in table:
                return table[path]
        raise UnsafePickle(path)

    def load_reduce(self) -> None:
        function = self.stack[-2]
        if not any(function is allowed for allowed in _callables().values()):
            raise UnsafePickle(f'a call of {_name_of(function)}')
        super().load_reduce()

    def load_newobj(self) -> None:
        kind, args = self.stack[-2:]
        if kind is not HistoryBuffer or args != ():
            raise UnsafePickle(f'an instance of {_name_of(kind)}')
        super().load_newobj()

    def load_build(self) -> None:
        owner, state = self.stack[-2:]
        check = _STATES.get(type(owner), _state_of_dtype if isinstance(owner, np.dtype) else None)
        if check is None:
            raise UnsafePickle(f'a state of {_name_of(type(owner))}')
        self.stack[-1] = check(owner, state)
        super().load_build()

    def load_binpersid(self) -> None:
        name = self.stack[-1]
        if type(name) is not tuple or name[:1] not in (('storage',), (b'storage',)):
            raise UnsafePickle('something that is no storage')
        if self.sizes is not None:
            _, kind, key, _, numel = name
            itemsize = 1 if kind is torch.UntypedStorage else kind.dtype.itemsize
            if not 0 <= numel * itemsize <= self.sizes[f'data/{key}']:
                raise pickle.UnpicklingError(f'storage {key} has fewer bytes than it says')
        super().load_binpersid()

    def load_append(self) -> None:
        _check_container(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        _check_container(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self) -> None:
        _check_container(self.stack[-3], dict, OrderedDict, Counter)
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_container(self.metastack[-1][-1], dict, OrderedDict, Counter)
        super().load_setitems()

    def load_additems(self) -> None:
        _check_container(self.metastack[-1][-1], set)
        super().load_additems()

    def refuse(self) -> None:
        raise UnsafePickle('an instruction that checkpoints have no use for')

    for _name in (
        'reduce',
        'newobj',
        'build',
        'binpersid',
        'append',
        'appends',
        'setitem',
        'setitems',
        'additems',
    ):
        dispatch[getattr(pickle, _name.upper())[0]] = locals()[f'load_{_name}']
    for _name in ('INST', 'OBJ', 'NEWOBJ_EX', 'PERSID', 'EXT1', 'EXT2', 'EXT4'):
        dispatch[getattr(pickle, _name)[0]] = refuse


def _check_container(container: Any, *kinds: type) -> None:
    if type(container) not in kinds:
        raise UnsafePickle(f'items of {_name_of(type(container))}')


def _state_of_ordered_dict(owner: OrderedDict, state: Any) -> dict:
    # What state_dict() leaves there. Any other attribute could stand in for a method.
    return {'_metadata': state['_metadata']} if '_metadata' in state else {}


def _state_of_history(owner: HistoryBuffer, state: dict) -> dict:
    known = {key: state[key] for key in ('_log_history', '_count_history', 'max_length')}
    if [type(value) for value in known.values()] != [np.ndarray, np.ndarray, int]:
        raise UnsafePickle('a history of other things than numbers')
    return known


def _state_of_array(owner: np.ndarray, state: tuple) -> tuple:
    _, _, dtype, _, _ = state
    # Memory that somebody looks at already must not be replaced.
    if owner.size or not isinstance(dtype, np.dtype) or dtype.kind not in _NUMBERS_AND_TEXTS:
        raise UnsafePickle('an array of other things than numbers')
    return state


def _state_of_dtype(owner: np.dtype, state: tuple) -> tuple:
    version, byte_order, *rest = owner.__reduce__()[2]
    if state[1] not in ('<', '>', '|', '=') or state != (version, state[1], *rest):
        raise UnsafePickle('a data type of its own')
    return state


_STATES = {
    OrderedDict: _state_of_ordered_dict,
    HistoryBuffer: _state_of_history,
    np.ndarray: _state_of_array,
}


@functools.lru_cache(maxsize=None)
def _callables() -> Dict[str, Callable]:
    """What a checkpoint may call, by the name that it has in a pickle."""
    found = {
        'builtins.bytearray': bytearray,
        'builtins.bytes': bytes,  # without arguments, for empty ones
        'builtins.complex': complex,
        'builtins.getattr': _attribute,
        'builtins.set': set,
        'builtins.slice': slice,
        '_codecs.encode': _encode,
        'collections.Counter': Counter,
        'collections.OrderedDict': OrderedDict,
        'numpy.dtype': _dtype,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'torch._tensor._rebuild_from_type_v2': _tensor_of_type,
        'torch._utils._rebuild_tensor_v2': _tensor,
        'torch._utils._rebuild_parameter': _parameter,
        'torch._utils._rebuild_parameter_with_state': _parameter,
    }
    # numpy 2 writes _core and reads both; numpy 1.26 has core.
    for module in ('core', '_core'):
        found[f'numpy.{module}.multiarray._reconstruct'] = _array
        found[f'numpy.{module}.multiarray.scalar'] = np.float64().__reduce__()[0]
    for name in (
        '_rebuild_tensor',
        '_rebuild_device_tensor_from_numpy',
        '_rebuild_device_tensor_from_cpu_tensor',
    ):
        if hasattr(torch._utils, name):
            found[f'torch._utils.{name}'] = getattr(torch._utils, name)
    return found


@functools.lru_cache(maxsize=None)
def _values() -> Dict[str, Any]:
    """What a checkpoint may refer to, but not call, by the name that it has in a pickle."""
    found = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    for name in _STATISTICS:  # Protocol 4 names methods; before, getattr finds them.
        found[f'mmengine.logging.history_buffer.HistoryBuffer.{name}'] = getattr(
            HistoryBuffer, name
        )
    found.update(
        {
            'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
            'numpy.ndarray': np.ndarray,
            'torch.Tensor': torch.Tensor,
            'torch.nn.parameter.Parameter': torch.nn.Parameter,
            'torch.storage.TypedStorage': torch.storage.TypedStorage,
            'torch.storage.UntypedStorage': torch.UntypedStorage,
        }
    )
    return found


def _attribute(owner: Any, name: str) -> Any:
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise UnsafePickle(f'the attribute {name} of {_name_of(owner)}')


def _encode(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':  # How bytes are written.
        raise UnsafePickle(f'the encoding {encoding}')
    return text.encode(encoding)


def _dtype(code: str, *_: Any) -> np.dtype:
    dtype = np.dtype(code, False, True) if type(code) is str else np.dtype(object)
    if dtype.kind not in _NUMBERS_AND_TEXTS:
        raise UnsafePickle(f'the data type {code}')
    return dtype


def _array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise UnsafePickle(f'an array of {_name_of(kind)}')
    return np.empty(0, np.int8)  # Its state is the next instruction.


def _tensor(
    storage: Any,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> torch.Tensor:
    extra = () if metadata is None else (metadata,)
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, requires_grad, OrderedDict(), *extra
    )


def _parameter(
    data: torch.Tensor, requires_grad: bool, hooks: Any, state: Any = None
) -> torch.nn.Parameter:
    return torch._utils._rebuild_parameter(data, requires_grad, OrderedDict())


def _tensor_of_type(function: Callable, kind: type, args: tuple, state: Any) -> torch.Tensor:
    """A tensor that had attributes of its own, without them."""
    if not any(function is allowed for allowed in (_tensor, _parameter)):
        raise UnsafePickle(f'a call of {_name_of(function)}')
    return function(*args)


def _name_of(thing: Any) -> str:
    return getattr(thing, '__qualname__', None) or type(thing).__qualname__
