"""Levels of the backbone that nothing computes with are not kept."""

import pytest
import torch
from torch import nn

from fba_mm import LocalBackbone
from fba_mm.local.feature_bank import FeatureBank
from fba_mm.local.level_reads import levels_read
from fba_mm.local.partition import StageMap

from ..conftest import NUM_CLASSES, batch, build, retinanet
from ..local_training import Trainer

LEVELS = [StageMap(i, 8 * 2**i, 4 * 2**i, i) for i in range(4)]
LIGHT = dict(type='SLM', head=dict(type='LightRetinaNet', num_classes=NUM_CLASSES, channels=16))


class Source(nn.Module):
    """What a neck sits on, with the part of LocalBackbone that a pass on given maps needs."""

    answering = LocalBackbone.answering

    def forward(self, x):
        return self._answer


@pytest.mark.parametrize('start, read', [(0, {0, 1, 2, 3}), (1, {1, 2, 3}), (2, {2, 3})])
def test_necks(start, read):
    config = retinanet(num_modules=None)
    config['neck'].update(start_level=start)
    model = build(config)
    model.backbone = Source()
    modes = [module.training for module in model.modules()]
    assert levels_read(model, model.backbone, LEVELS) == read
    assert [module.training for module in model.modules()] == modes
    # Whatever else may look at the maps: it isn't known.
    other = type('Other', (type(model),), dict(loss=lambda self: None))
    model.__class__ = other
    assert levels_read(model, model.backbone, LEVELS) == {0, 1, 2, 3}


@pytest.mark.parametrize('auxiliary', [LIGHT, dict(type='SLM')], ids=['own', 'shared'])
@pytest.mark.parametrize('scope', ['past', 'all'])
def test_training_is_the_same_without_them(auxiliary, scope, monkeypatch):
    model = build(retinanet(num_modules=4, auxiliary=auxiliary))
    banked = {}

    def put(bank, level, feature, ahead=False, put=FeatureBank.put):
        if not ahead:
            banked[level] = feature
        put(bank, level, feature, ahead)

    monkeypatch.setattr(FeatureBank, 'put', put)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for forgets in (True, False):
        model.load_state_dict(state)
        trainer = Trainer(model, scope=scope)
        if not forgets:
            trainer.hook._unread = frozenset()
        found.append(trainer.gradients(batch()))
        trainer.hook.after_train(trainer.runner)
        # One number instead of (2, 8, 16, 16).
        assert banked[0].shape == (2, 8, 16, 16)
        assert banked[0].untyped_storage().nbytes() == 4 * (1 if forgets else banked[0].numel())
    forgetting, keeping = found
    assert set(forgetting) == set(keeping)
    assert all(torch.equal(forgetting[name], keeping[name]) for name in keeping)


def test_what_reads_all():
    """A neck from the finest level on, and features of an auxiliary network that doesn't say."""
    config = retinanet(num_modules=4, auxiliary=LIGHT)
    config['neck']['start_level'] = 0
    assert Trainer(build(config)).hook._unread == frozenset()
    dgl = dict(type='DGLFPN', head=LIGHT['head'])
    model = build(retinanet(num_modules=4, auxiliary=dgl))
    assert Trainer(model).hook._unread == frozenset()
