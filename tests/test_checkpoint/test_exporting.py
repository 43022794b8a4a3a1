"""Exporting and writing checkpoints."""

import os
import stat

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.checkpoint import export_checkpoint, read_checkpoint, write_checkpoint
from tests.conftest import build, own_head, retinanet

from .changed_models import differs, equal, predictions


@pytest.mark.parametrize('auxiliary', [dict(type='SLM'), own_head()], ids=['shared', 'own head'])
@pytest.mark.parametrize('num_modules', [1, 4, 'stages'])
def test_export_predicts_the_same(num_modules, auxiliary, tmp_path):
    model = differs(build(retinanet(num_modules=num_modules, auxiliary=auxiliary)))
    whole = dict(
        state_dict=model.state_dict(),
        optimizer={'x': 1},
        message_hub={},
        meta=dict(epoch=3, config='text', dataset_meta=dict(classes=('a',))),
    )
    exported = export_checkpoint(model, whole)
    assert set(exported) == {'meta', 'state_dict'}
    assert exported['meta'] == dict(epoch=3, dataset_meta=dict(classes=('a',)))
    write_checkpoint(exported, str(tmp_path / 'new/stock.pth'))
    stock = build(retinanet(num_modules=None))
    stock.load_state_dict(
        read_checkpoint(str(tmp_path / 'new/stock.pth'))['state_dict'], strict=True
    )
    assert equal(predictions(stock), predictions(model))
    assert set(whole) == {'state_dict', 'optimizer', 'message_hub', 'meta'}, 'it was changed'


def test_export_of_weights_from_several_processes():
    model = build(retinanet())
    saved = dict(state_dict={f'module.{k}': v for k, v in model.state_dict().items()})
    build(retinanet(num_modules=None)).load_state_dict(
        export_checkpoint(model, saved)['state_dict'], strict=True
    )


def test_export_without_a_local_backbone():
    model = build(retinanet(num_modules=None))
    with pytest.raises(LocalLearningError, match='no LocalBackbone'):
        export_checkpoint(model, dict(state_dict=model.state_dict()))


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
