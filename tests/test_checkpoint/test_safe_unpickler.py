"""What checkpoints consist of is read as ``torch.load`` reads it; nothing else is read at all."""

import codecs
import collections
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from fba_mm.checkpoint.safe_unpickler import UnsafePickle, _callables, _Unpickler, load_safely
from fba_mm.compat import torch_versions


def _checkpoint() -> dict:
    weights = collections.OrderedDict(
        weight=torch.arange(6.0).view(2, 3).t(), half=torch.ones(2, dtype=torch.bfloat16)
    )
    weights._metadata = collections.OrderedDict({'': dict(version=2)})
    return dict(
        state_dict=weights,
        meta=dict(
            epoch=3,
            classes=('a', 'b'),
            words={'x', 'y'},
            part=slice(1, None),
            raw=b'\x00\xff',
            none=None,
            size=torch.Size([1, 2]),
            kind=torch.float16,
            big=2**70,
            z=1 + 2j,
        ),
        message_hub=dict(
            log_scalars=collections.OrderedDict(loss=HistoryBuffer([3.0, 2.0, 1.0], [1, 1, 1])),
            numbers=[
                np.float32(0.5),
                np.int64(7),
                np.bool_(True),
                np.arange(3, dtype='>i2'),
                np.array(['ab', 'c']),
                np.array([b'xyz']),
                np.zeros((2, 0)),
            ],
        ),
        optimizer=dict(state={0: dict(exp_avg=torch.rand(2, 2))}),
    )


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, HistoryBuffer):
        return all(map(_same, a.data, b.data)) and a.max_length == b.max_length
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_checkpoints_consist_of(protocol, zipped, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(_checkpoint(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for file in (str(path), path, io.BytesIO(path.read_bytes())):
        found = load_safely(file, 'cpu')
        assert _same(torch.load(path, weights_only=False), found)
    assert found['state_dict']._metadata == {'': dict(version=2)}
    history = found['message_hub']['log_scalars']['loss']
    assert (history.mean(2), history.statistics('current')) == (1.5, 1.0)
    history.update(5.0)
    assert history.max() == 5.0


def test_tensors_leave_hooks_and_attributes_behind(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    parameter.note = 'mine'
    tensor = torch.ones(3, requires_grad=True)
    tensor.note = 'mine'
    torch.save([parameter, tensor], tmp_path / 'a.pth')
    parameter, tensor = load_safely(tmp_path / 'a.pth')
    assert type(parameter) is torch.nn.Parameter and not parameter.requires_grad
    assert torch.equal(tensor, torch.ones(3)) and tensor.requires_grad
    assert not hasattr(parameter, 'note') and not hasattr(tensor, 'note')


def test_what_torch_was_told_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save(_checkpoint(), tmp_path / 'a.pth')
    load_safely(tmp_path / 'a.pth')
    with pytest.raises(Exception, match='(?i)weights.only|unsupported class'):
        torch.load(tmp_path / 'a.pth')


class _As:
    """Pickles as a call, with a state and items."""

    def __init__(self, function, *args, state=None, items=None, pairs=None):
        self.reduced = (function, args, state, items and iter(items), pairs and iter(pairs))

    def __reduce__(self):
        return self.reduced


def _built(name: str, state) -> bytes:
    """The program that sets the state of something that has a name."""
    module, _, name = name.rpartition('.')
    start = pickle.PROTO + b'\x02' + pickle.GLOBAL + f'{module}\n{name}\n'.encode()
    return start + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + pickle.STOP


_PLAIN = np.dtype('f8').__reduce__()[2]
_REBUILD = 'torch._utils._rebuild_tensor_v2'
REFUSED = dict(
    name=_As(eval, '1'),
    encoding=_As(codecs.encode, 'ab', 'rot13'),
    attribute=_As(getattr, HistoryBuffer, '__init__'),
    attribute_of_another=_As(getattr, torch.Tensor, 'mean'),
    call_of_a_value=_As(np.ndarray, (2,), np.dtype('f8')),
    call_of_a_method=_As(HistoryBuffer.mean, HistoryBuffer([1.0], [1])),
    state_of_a_function=_built(_REBUILD, (None, dict(__defaults__=(1,)))),
    state_of_a_class=_built(
        'mmengine.logging.history_buffer.HistoryBuffer', (None, dict(update=torch.Size))
    ),
    state_of_a_history=pickle.PROTO
    + b'\x02'
    + pickle.GLOBAL
    + b'mmengine.logging.history_buffer\nHistoryBuffer\n'
    + pickle.EMPTY_TUPLE
    + pickle.NEWOBJ
    + pickle.dumps(dict(_log_history=1, _count_history=2, max_length=3), 2)[2:-1]
    + pickle.BUILD
    + pickle.STOP,
    instance=pickle.PROTO
    + b'\x02'
    + pickle.GLOBAL
    + b'torch\nTensor\n'
    + pickle.EMPTY_TUPLE
    + pickle.NEWOBJ
    + pickle.STOP,
    items_of_a_size=_As(torch.Size, (1,), items=[1, 2]),
    pairs_of_an_array=_As(bytearray, b'ab', pairs=[(0, 1)]),
    objects=np.array([None, 1]),
    objects_in_a_record=_As(np.dtype, [('a', 'O')]),
    dtype_with_flags=_As(np.dtype, 'f8', False, True, state=_PLAIN[:-1] + (1,)),
    dtype_with_fields=_As(np.dtype, 'V8', False, True),
    extension=pickle.PROTO + b'\x02' + pickle.EXT1 + b'\x01' + pickle.STOP,
    old_instance=pickle.MARK + pickle.INST + b'torch\nSize\n' + pickle.STOP,
    persistent=pickle.PERSID + b'1\n' + pickle.STOP,
    module=pickle.PROTO
    + b'\x02'
    + pickle.dumps(('module', 1, 2, 3), 2)[2:-1]
    + pickle.BINPERSID
    + pickle.STOP,
)


@pytest.mark.parametrize('kind', REFUSED)
def test_refused(kind):
    program = REFUSED[kind]
    program = program if isinstance(program, bytes) else pickle.dumps(program, 2)
    with pytest.raises(UnsafePickle):
        _Unpickler(io.BytesIO(program)).load()


def test_memory_in_use_is_not_replaced():
    """A tensor may stand on an array's memory already."""
    array = np.arange(3)
    program = pickle.dumps(array, 2)[:-1]
    state = pickle.dumps(array.__reduce__()[2], 2)[2:-1]
    assert np.array_equal(_Unpickler(io.BytesIO(program + pickle.STOP)).load(), array)
    with pytest.raises(UnsafePickle):
        _Unpickler(io.BytesIO(program + state + pickle.BUILD + pickle.STOP)).load()


def _rewritten(good, path, name, change):
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, 'w') as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item, change(data) if item.filename.endswith(name) else data)
    return path


def _with_two_directories(path, target, size):
    """The archive again, with another list of records after the first.

    Python's reader takes the one that stands last, in which ``data/0`` has ``size`` bytes and no
    record has a checksum; torch's reader takes the one whose place is stated.
    """
    archive = path.read_bytes()
    end = archive.rfind(b'PK\5\6')
    length, start = struct.unpack('<II', archive[end + 12 : end + 20])
    first = archive[start : start + length]
    second, entry = bytearray(first), 0
    while entry < length:
        name, *others = struct.unpack('<HHH', second[entry + 28 : entry + 34])
        is_longer = second[entry + 46 :][:name].endswith(b'data/0')
        second[entry + 16 : entry + 20] = bytes(4)
        if is_longer:
            struct.pack_into('<II', second, entry + 20, size, size)
        entry += 46 + name + sum(others)
    target.write_bytes(archive[:start] + first + second + archive[end:])
    return target


@pytest.mark.parametrize('by_torch', [True, False])
def test_storage_that_is_shorter_than_it_says(by_torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_versions, 'REFUSES_CODE', by_torch and torch_versions.REFUSES_CODE)
    torch.save(torch.arange(100.0), tmp_path / 'good.pth')
    path = _rewritten(tmp_path / 'good.pth', tmp_path / 'bad.pth', 'data/0', lambda data: data[:8])
    two = _with_two_directories(path, tmp_path / 'two.pth', size=400)
    with zipfile.ZipFile(two) as archive:
        assert sorted(record.file_size for record in archive.infolist())[-1] == 400
    for bad in (path, two):
        with pytest.raises(Exception, match='fewer bytes than|does not match expected size'):
            load_safely(bad)


@pytest.mark.parametrize('layout', ['coo', 'csr', 'quantized'])
def test_tensors_that_are_not_dense(layout, tmp_path):
    """Their indices may point anywhere."""
    tensor = torch.eye(2)
    tensor = {
        'coo': tensor.to_sparse,
        'csr': tensor.to_sparse_csr,
        'quantized': lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[layout]()
    torch.save(tensor, tmp_path / 'a.pth')
    with pytest.raises(UnsafePickle, match='_rebuild_(sparse_|q)tensor'):
        load_safely(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'offset, size, stride',
    [(-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2**62, 4), (4, 1)), (2**62, (4,), (1,))],
    ids=str,
)
def test_a_view_of_other_memory(offset, size, stride):
    storage = torch.arange(4.0)._typed_storage()
    with pytest.raises(RuntimeError):
        _callables()[_REBUILD](storage, offset, size, stride, False, {})


def test_torchscript_is_not_loaded(tmp_path):
    """Before torch 2.6, torch.load hands it on, whatever ``weights_only`` is."""
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / 'a.pth'))
    with pytest.raises(UnsafePickle, match='TorchScript'):
        load_safely(tmp_path / 'a.pth')


def test_tar_is_not_unpacked(tmp_path):
    (tmp_path / 'pickle').write_bytes(b'')
    with tarfile.open(tmp_path / 'a.pth', 'w') as archive:
        archive.add(tmp_path / 'pickle', 'storages')
    with pytest.raises(UnsafePickle, match='tar'):
        load_safely(tmp_path / 'a.pth')
