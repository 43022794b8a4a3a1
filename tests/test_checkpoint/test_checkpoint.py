"""Reading, comparing and exporting checkpoints."""
import copy
import logging
import os
import stat

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import load_checkpoint

from fba_mm import LocalLearningError
from fba_mm.checkpoint import (check_fit, compare, export_checkpoint, guard_checkpoints,
                               read_checkpoint, state_dict_of, write_checkpoint)
from tests.conftest import batch, build, own_head, retinanet
from tests.test_tools.in_process import untouched_process


def _differs(model, seed=1):
    """Make every weight and statistic another one than a fresh model has."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_((torch.rand(tensor.shape, generator=generator) - .5) * .05)
    return model


def _predictions(model):
    with torch.no_grad():
        return [sample.pred_instances for sample in model.eval().test_step(batch())]


def _equal(ours, theirs):
    return all(
        torch.equal(a.bboxes, b.bboxes) and torch.equal(a.scores, b.scores)
        and torch.equal(a.labels, b.labels) and len(a) for a, b in zip(ours, theirs))


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8',
                                   'c8', 'c16', '?', 'U5', 'S5'])
def test_numpy_values_of_every_kind(dtype, tmp_path):
    array = np.arange(3).astype(dtype)
    content = dict(state_dict={}, meta=dict(array=array, scalar=array[1], kind=array.dtype))
    torch.save(content, tmp_path / 'numpy.pth')
    meta = read_checkpoint(str(tmp_path / 'numpy.pth'))['meta']
    assert np.array_equal(meta['array'], array) and meta['array'].dtype == array.dtype
    assert meta['scalar'] == array[1] and type(meta['scalar']) is type(array[1])
    assert meta['kind'] == array.dtype


def test_log_history_keeps_its_statistics(tmp_path):
    buffer = HistoryBuffer([1., 2., 6.], [1, 1, 1])
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
            meta=dict(CLASSES=('a', 'b', 'c'), PALETTE=[(1, 2, 3)] * 3, mmdet_version='2.11.0',
                      config='model = dict()', epoch=12, iter=100, hook_msgs={}),
            state_dict={f'module.{k}': v for k, v in model.state_dict().items()}),
        tmp_path / 'zoo.pth')
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


@pytest.mark.parametrize('info', [
    dict(best_ckpt='/elsewhere'), dict(best_ckpt='/elsewhere/best_x.pth'),
    {'best_ckpt_coco/bbox_mAP': '../best_x.pth'}, dict(best_ckpt='{here}/photos'),
    dict(best_ckpt=['{here}']), dict(keep_ckpt_ids=[1, '/../../elsewhere/model'])
], ids=str)
def test_names_of_files_to_delete_are_dropped(info, tmp_path):
    """CheckpointHook deletes what the former best checkpoint is said to be called."""
    info = {key: value.format(here=tmp_path) if isinstance(value, str) else value
            for key, value in info.items()}
    path = str(tmp_path / 'x.pth')
    torch.save(dict(message_hub=dict(log_scalars={}, resumed_keys={},
                                     runtime_info=dict(info, iter=3))), path)
    assert read_checkpoint(path)['message_hub']['runtime_info'] == dict(iter=3)
    assert read_checkpoint(path, trust=True)['message_hub']['runtime_info'] == dict(info, iter=3)


def test_names_of_the_training_itself_stay(tmp_path):
    path = str(tmp_path / 'x.pth')
    info = dict(best_ckpt=str(tmp_path / 'best_coco_bbox_mAP_epoch_1.pth'), best_score=.5,
                keep_ckpt_ids=[1, 2])
    torch.save(dict(message_hub=dict(runtime_info=info)), path)
    assert read_checkpoint(path)['message_hub']['runtime_info'] == info


@pytest.mark.parametrize('content', [dict(meta=[1]), dict(message_hub=3),
                                     dict(message_hub=dict(runtime_info=[]))], ids=str)
def test_parts_of_another_kind(content, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(LocalLearningError, match='is corrupt or no checkpoint'):
        read_checkpoint(str(tmp_path / 'x.pth'))


def test_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save({'a': torch.ones(1)}, tmp_path / 'mine.pth')
    assert read_checkpoint('~/mine.pth')['a'] == 1


@pytest.mark.parametrize('forced', ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None])
def test_guard_whatever_the_environment_says(forced, tmp_path, monkeypatch):
    if forced:
        monkeypatch.setenv(forced, '1')
    torch.save(dict(state_dict=build(retinanet()).state_dict(), meta={'x': slice(1)}),
               tmp_path / 'a.pth')
    with untouched_process():
        guard_checkpoints()
        # MMEngine's list for the loaders that read by themselves; older versions have none.
        assert getattr not in getattr(mmengine_checkpoint, 'get_torch_safe_globals', list)()
        load_checkpoint(build(retinanet()), str(tmp_path / 'a.pth'), strict=True)
        torch.save(dict(x=_Touch(tmp_path / 'marker')), tmp_path / 'b.pth')
        with pytest.raises(LocalLearningError, match='wants to run code'):
            load_checkpoint(build(retinanet()), str(tmp_path / 'b.pth'))
        with pytest.raises(Exception):
            torch.load(tmp_path / 'b.pth', weights_only=False)
    assert not (tmp_path / 'marker').exists()


class _Touch:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'", )


@pytest.mark.parametrize('num_modules', [1, 4, 'blocks'])
def test_stock_checkpoint_loads_into_the_wrapped_model(num_modules, tmp_path, caplog):
    stock = _differs(build(retinanet(num_modules=None)))
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    model = build(retinanet(num_modules=num_modules))
    auxiliary = copy.deepcopy(model.backbone.auxiliary.state_dict())
    log = _load(model, tmp_path / 'stock.pth')
    assert ('auxiliary networks start from their own initialization' in log) == (num_modules != 1)
    assert 'missing keys' not in log and 'unexpected key' not in log
    assert _equal(_predictions(model), _predictions(stock))
    for name, tensor in model.backbone.auxiliary.state_dict().items():
        assert torch.equal(tensor, auxiliary[name])


@pytest.mark.parametrize('change, words', [
    (lambda s: s.pop('neck.fpn_convs.0.conv.weight'), ['missing keys', 'neck.fpn_convs.0']),
    (lambda s: s.pop('backbone.layer3.0.conv1.weight'), ['missing keys', 'layer3.0.conv1.weight']),
    (lambda s: s.update({'neck.extra': torch.ones(1)}), ['unexpected key', 'neck.extra']),
], ids=['neck', 'backbone', 'extra'])
def test_real_mismatch_is_in_the_log(change, words, tmp_path):
    state_dict = build(retinanet(num_modules=None)).state_dict()
    change(state_dict)
    torch.save(dict(state_dict=state_dict), tmp_path / 'stock.pth')
    log = _load(build(retinanet()), tmp_path / 'stock.pth')
    mismatch = log[log.index('do not match exactly'):]
    for word in words:
        assert word in mismatch
    assert '.auxiliary.' not in mismatch


def _load(model, path):
    """Load as MMEngine's runner does; returns what it logs."""
    logger = MMLogger.get_current_instance()
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel('INFO')
    try:
        load_checkpoint(model, str(path), map_location='cpu', logger=logger)
    finally:
        logger.removeHandler(handler)
    return '\n'.join(lines)


@pytest.mark.parametrize('auxiliary', [dict(type='SLM'), own_head()], ids=['shared', 'own head'])
@pytest.mark.parametrize('num_modules', [1, 4, 'stages'])
def test_export_predicts_the_same(num_modules, auxiliary, tmp_path):
    model = _differs(build(retinanet(num_modules=num_modules, auxiliary=auxiliary)))
    whole = dict(state_dict=model.state_dict(), optimizer={'x': 1}, message_hub={},
                 meta=dict(epoch=3, config='text', dataset_meta=dict(classes=('a', ))))
    exported = export_checkpoint(model, whole)
    assert set(exported) == {'meta', 'state_dict'}
    assert exported['meta'] == dict(epoch=3, dataset_meta=dict(classes=('a', )))
    write_checkpoint(exported, str(tmp_path / 'new/stock.pth'))
    stock = build(retinanet(num_modules=None))
    stock.load_state_dict(read_checkpoint(str(tmp_path / 'new/stock.pth'))['state_dict'],
                          strict=True)
    assert _equal(_predictions(stock), _predictions(model))
    assert set(whole) == {'state_dict', 'optimizer', 'message_hub', 'meta'}, 'it was changed'


def test_export_of_weights_from_several_processes():
    model = build(retinanet())
    saved = dict(state_dict={f'module.{k}': v for k, v in model.state_dict().items()})
    build(retinanet(num_modules=None)).load_state_dict(
        export_checkpoint(model, saved)['state_dict'], strict=True)


def test_export_without_a_local_backbone():
    model = build(retinanet(num_modules=None))
    with pytest.raises(LocalLearningError, match='no LocalBackbone'):
        export_checkpoint(model, dict(state_dict=model.state_dict()))


def test_compare_names_what_differs():
    model = build(retinanet())
    state_dict = dict(model.state_dict())
    assert compare(model, state_dict)[:4] == ([], [], [], [])
    state_dict['extra'] = torch.ones(1)
    del state_dict['neck.fpn_convs.0.conv.bias']
    state_dict['backbone.backbone.conv1.weight'] = torch.ones(1)
    fit = compare(model, state_dict)
    assert fit.missing == ['neck.fpn_convs.0.conv.bias'] and fit.unexpected == ['extra']
    assert fit.mismatched[0].startswith('backbone.backbone.conv1.weight ((1,) in the checkpoint, (')
    assert len(fit.backbone) == 1 and fit.total == len(model.state_dict())


def test_fit_by_purpose(tmp_path):
    """Training may start with another head; testing and resuming may not."""
    model, path = build(retinanet()), str(tmp_path / 'x.pth')
    state_dict = model.state_dict()
    state_dict['bbox_head.retina_cls.weight'] = torch.ones(1)
    meta = dict(meta=dict(epoch=1, iter=1), message_hub={}, optimizer={})
    torch.save(dict(state_dict=state_dict, **meta), path)
    check_fit(model, path, 'load')
    for purpose in ('test', 'resume'):
        with pytest.raises(LocalLearningError, match='retina_cls'):
            check_fit(model, path, purpose)
    state_dict = model.state_dict()
    del state_dict['backbone.backbone.layer1.0.conv1.weight']
    torch.save(dict(state_dict=state_dict, **meta), path)
    with pytest.raises(LocalLearningError, match='layer1.0.conv1'):
        check_fit(model, path, 'load')


def test_resume_takes_no_more_than_the_model_has(tmp_path):
    """Weights that are left over mean that another config was trained."""
    model, path = build(retinanet()), str(tmp_path / 'x.pth')
    state_dict = dict(model.state_dict(), **{'backbone.auxiliary.3.weight': torch.ones(1)})
    torch.save(dict(state_dict=state_dict, meta=dict(epoch=1, iter=1), message_hub={},
                    optimizer={}), path)
    check_fit(model, path, 'test')
    with pytest.raises(LocalLearningError, match='such as backbone.auxiliary.3.weight'):
        check_fit(model, path, 'resume')


def test_state_dict_of_other_writers():
    weights = {'a': torch.ones(1)}
    for checkpoint in (weights, dict(state_dict=weights, meta={}), dict(model=weights, epoch=3),
                       {'module.a': weights['a']}):
        assert state_dict_of(checkpoint) == weights


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    write_checkpoint(dict(a=1), str(path))
    old = path.read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(content, file):
        file.write(b'half')
        raise RuntimeError('the process was stopped')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(RuntimeError, match='was stopped'):
        write_checkpoint(dict(a=2), str(path))
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path, monkeypatch):

    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(LocalLearningError, match='No space left on device'):
        write_checkpoint(dict(a=1), str(tmp_path / 'weights.pth'))
    assert not list(tmp_path.iterdir())
