"""Reading checkpoints without running code from them."""

import os
import pickle
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import load_checkpoint
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from fba_mm import LocalLearningError
from fba_mm.checkpoint import check_fit, guard_checkpoints, read_checkpoint
from fba_mm.checkpoint.safe_unpickler import UnsafePickle
from fba_mm.compat import torch_versions
from tests.conftest import build, retinanet
from tests.test_tools.in_process import untouched_process


@pytest.mark.parametrize(
    'dtype',
    [
        'f2',
        'f4',
        'f8',
        'i1',
        'i2',
        'i4',
        'i8',
        'u1',
        'u2',
        'u4',
        'u8',
        'c8',
        'c16',
        '?',
        'U5',
        'S5',
    ],
)
def test_numpy_values_of_every_kind(dtype, tmp_path):
    array = np.arange(3).astype(dtype)
    content = dict(state_dict={}, meta=dict(array=array, scalar=array[1], kind=array.dtype))
    torch.save(content, tmp_path / 'numpy.pth')
    meta = read_checkpoint(str(tmp_path / 'numpy.pth'))['meta']
    assert np.array_equal(meta['array'], array) and meta['array'].dtype == array.dtype
    assert meta['scalar'] == array[1] and type(meta['scalar']) is type(array[1])
    assert meta['kind'] == array.dtype


def test_log_history_keeps_its_statistics(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1])
    torch.save(dict(meta={}, message_hub=dict(log_scalars=dict(loss=buffer))), tmp_path / 'x.pth')
    read = read_checkpoint(str(tmp_path / 'x.pth'))['message_hub']['log_scalars']['loss']
    assert read.statistics('mean') == 3 and read.statistics('max') == 6
    assert read.current() == 6 and read.min() == 1


def test_half_precision_weights(tmp_path):
    weights = {'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.ones(2, dtype=torch.float16)}
    torch.save(weights, tmp_path / 'half.pth')
    read = read_checkpoint(str(tmp_path / 'half.pth'))
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in weights.items())


def test_model_zoo_style(tmp_path):
    """Published weights: a meta with names and a config text, and no optimizer."""
    model = build(retinanet(num_modules=None))
    torch.save(
        dict(
            meta=dict(
                CLASSES=('a', 'b', 'c'),
                PALETTE=[(1, 2, 3)] * 3,
                mmdet_version='2.11.0',
                config='model = dict()',
                epoch=12,
                iter=100,
                hook_msgs={},
            ),
            state_dict={f'module.{k}': v for k, v in model.state_dict().items()},
        ),
        tmp_path / 'zoo.pth',
    )
    path = str(tmp_path / 'zoo.pth')
    checkpoint = read_checkpoint(path)
    assert checkpoint['meta']['CLASSES'] == ('a', 'b', 'c')
    assert 'config' not in checkpoint['meta']
    assert 'config' in read_checkpoint(path, trust=True)['meta']
    for wrapped in (build(retinanet()), build(retinanet(num_modules=None))):
        check_fit(wrapped, path, 'test')
        check_fit(wrapped, path, 'load')
        with pytest.raises(LocalLearningError, match='has no optimizer, message_hub'):
            check_fit(wrapped, path, 'resume')


@pytest.mark.parametrize(
    'info',
    [
        dict(best_ckpt='/elsewhere'),
        dict(best_ckpt='/elsewhere/best_x.pth'),
        {'best_ckpt_coco/bbox_mAP': '../best_x.pth'},
        dict(best_ckpt='{here}/photos'),
        dict(best_ckpt=['{here}']),
        dict(keep_ckpt_ids=[1, '/../../elsewhere/model']),
    ],
    ids=str,
)
def test_names_of_files_to_delete_are_dropped(info, tmp_path):
    """CheckpointHook deletes what the former best checkpoint is said to be called."""
    info = {
        key: value.format(here=tmp_path) if isinstance(value, str) else value
        for key, value in info.items()
    }
    path = str(tmp_path / 'x.pth')
    torch.save(
        dict(message_hub=dict(log_scalars={}, resumed_keys={}, runtime_info=dict(info, iter=3))),
        path,
    )
    assert read_checkpoint(path)['message_hub']['runtime_info'] == dict(iter=3)
    assert read_checkpoint(path, trust=True)['message_hub']['runtime_info'] == dict(info, iter=3)


def test_names_of_the_training_itself_stay(tmp_path):
    path = str(tmp_path / 'x.pth')
    info = dict(
        best_ckpt=str(tmp_path / 'best_coco_bbox_mAP_epoch_1.pth'),
        best_score=0.5,
        keep_ckpt_ids=[1, 2],
    )
    torch.save(dict(message_hub=dict(runtime_info=info)), path)
    assert read_checkpoint(path)['message_hub']['runtime_info'] == info


@pytest.mark.parametrize(
    'content',
    [dict(meta=[1]), dict(message_hub=3), dict(message_hub=dict(runtime_info=[]))],
    ids=str,
)
def test_parts_of_another_kind(content, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(LocalLearningError, match='is corrupt or no checkpoint'):
        read_checkpoint(str(tmp_path / 'x.pth'))


def test_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'a': torch.ones(1)}, tmp_path / 'mine.pth')
    assert read_checkpoint('~/mine.pth')['a'] == 1


def test_config_texts_are_dropped(tmp_path):
    """Resuming executes one, inferencers the others."""
    path = str(tmp_path / 'x.pth')
    runtime_info = OrderedDict(iter=3, cfg='print()')
    torch.save(
        dict(
            meta=dict(epoch=1, config='print()', cfg='print()'),
            message_hub=dict(runtime_info=runtime_info),
        ),
        path,
    )
    assert read_checkpoint(path) == dict(
        meta=dict(epoch=1), message_hub=dict(runtime_info=dict(iter=3))
    )


def test_torch_itself_where_it_cannot_be_left_to_it(tmp_path, monkeypatch):
    """Older versions hand such a file on to code that runs it, whatever they are told."""
    monkeypatch.setattr(torch_versions, 'REFUSES_CODE', False)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / 'a.pth'))
    torch.save(dict(a=torch.ones(1)), tmp_path / 'b.pth')
    with untouched_process():
        guard_checkpoints()
        with pytest.raises(UnsafePickle, match='TorchScript'):
            torch.load(tmp_path / 'a.pth', weights_only=False)
        assert torch.load(tmp_path / 'b.pth', 'cpu', weights_only=True) == dict(a=1)


@pytest.mark.parametrize('forced', ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None])
def test_guard_whatever_the_environment_says(forced, tmp_path, monkeypatch):
    if forced:
        monkeypatch.setenv(forced, '1')
    torch.save(
        dict(state_dict=build(retinanet()).state_dict(), meta={'x': slice(1)}), tmp_path / 'a.pth'
    )
    with untouched_process():
        guard_checkpoints()
        # MMEngine's list for the loaders that read by themselves; older versions have none.
        assert getattr not in getattr(mmengine_checkpoint, 'get_torch_safe_globals', list)()
        load_checkpoint(build(retinanet()), str(tmp_path / 'a.pth'), strict=True)
        torch.save(dict(x=_Touch(tmp_path / 'marker')), tmp_path / 'b.pth')
        with pytest.raises(LocalLearningError, match='wants to run code'):
            load_checkpoint(build(retinanet()), str(tmp_path / 'b.pth'))
        with pytest.raises(Exception):  # noqa: B017, which one depends on the version
            torch.load(tmp_path / 'b.pth', weights_only=False)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('position', range(5))
def test_each_part_of_a_file_from_before_archives(position, tmp_path):
    """Such a file is five pickles, one after the other, and the content of tensors."""
    marker = tmp_path / 'marker'
    parts = [MAGIC_NUMBER, PROTOCOL_VERSION, dict(little_endian=True), dict(state_dict={}), []]
    parts[position] = _Touch(marker)
    path = tmp_path / 'x.pth'
    path.write_bytes(b''.join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(LocalLearningError, match=r'wants to run code \(\w+.system\)'):
        read_checkpoint(str(path))
    assert not marker.exists()
    with suppress(Exception):
        read_checkpoint(str(path), trust=True)
    assert marker.exists()


@pytest.mark.parametrize('key', ['teacher_ckpt', 'init_cfg'])
def test_weights_that_a_model_loads_itself(key, tmp_path):
    path, marker = str(tmp_path / 'x.pth'), tmp_path / 'marker'
    torch.save(dict(state_dict={}, author=_Touch(marker)), path)
    cfg = retinanet(num_modules=None)
    if key == 'teacher_ckpt':
        cfg['type'] = 'mmdet.KnowledgeDistillationSingleStageDetector'
        cfg.update(teacher_config=dict(model=retinanet(num_modules=None)), teacher_ckpt=path)
    else:
        cfg['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    with untouched_process():
        guard_checkpoints()
        with pytest.raises(LocalLearningError, match='wants to run code'):
            build(cfg)
    assert not marker.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)
