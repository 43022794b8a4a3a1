"""Comparing checkpoints with a model."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint

from fba_mm import LocalLearningError
from fba_mm.checkpoint import check_fit, compare, state_dict_of
from tests.conftest import build, retinanet

from .changed_models import differs, equal, predictions


@pytest.mark.parametrize('num_modules', [1, 4, 'blocks'])
def test_stock_checkpoint_loads_into_the_wrapped_model(num_modules, tmp_path, caplog):
    stock = differs(build(retinanet(num_modules=None)))
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    model = build(retinanet(num_modules=num_modules))
    auxiliary = copy.deepcopy(model.backbone.auxiliary.state_dict())
    log = _load(model, tmp_path / 'stock.pth')
    assert ('auxiliary networks start from their own initialization' in log) == (num_modules != 1)
    assert 'missing keys' not in log and 'unexpected key' not in log
    assert equal(predictions(model), predictions(stock))
    for name, tensor in model.backbone.auxiliary.state_dict().items():
        assert torch.equal(tensor, auxiliary[name])


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda s: s.pop('neck.fpn_convs.0.conv.weight'), ['missing keys', 'neck.fpn_convs.0']),
        (
            lambda s: s.pop('backbone.layer3.0.conv1.weight'),
            ['missing keys', 'layer3.0.conv1.weight'],
        ),
        (lambda s: s.update({'neck.extra': torch.ones(1)}), ['unexpected key', 'neck.extra']),
    ],
    ids=['neck', 'backbone', 'extra'],
)
def test_real_mismatch_is_in_the_log(change, words, tmp_path):
    state_dict = build(retinanet(num_modules=None)).state_dict()
    change(state_dict)
    torch.save(dict(state_dict=state_dict), tmp_path / 'stock.pth')
    log = _load(build(retinanet()), tmp_path / 'stock.pth')
    mismatch = log[log.index('do not match exactly') :]
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
    torch.save(
        dict(state_dict=state_dict, meta=dict(epoch=1, iter=1), message_hub={}, optimizer={}), path
    )
    check_fit(model, path, 'test')
    with pytest.raises(LocalLearningError, match='such as backbone.auxiliary.3.weight'):
        check_fit(model, path, 'resume')


def test_state_dict_of_other_writers():
    weights = {'a': torch.ones(1)}
    for checkpoint in (
        weights,
        dict(state_dict=weights, meta={}),
        dict(model=weights, epoch=3),
        {'module.a': weights['a']},
    ):
        assert state_dict_of(checkpoint) == weights
