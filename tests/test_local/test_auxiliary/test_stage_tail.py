"""FBA by the current paper: where each map comes from, and that modules train by it."""

import pytest
import torch

from fba_mm import LocalBackbone, LocalLearningError, localize
from fba_mm.local import FeatureBank
from fba_mm.preflight.building import build_model

from ...conftest import batch, build, own_head, retinanet
from ...local_training import Trainer
from ...test_analysis.small_configs import classifier
from .test_slm import CHANNELS, SIZES, full_bank, map_of, step_with

HEAD = own_head()['head']


def tail(stage, **settings):
    """The auxiliary network in the middle of a stage; -1 is the stem."""
    wrapped = LocalBackbone(
        retinanet(num_modules=None)['backbone'],
        'blocks',
        auxiliary=dict(dict(type='StageTail', head=HEAD, channels=4), **settings),
    )
    return wrapped.auxiliary[0 if stage < 0 else 2 * stage + 1].train()


@pytest.mark.parametrize('scope', ['past', 'all', 'off'])
@pytest.mark.parametrize('stage', [-1, 0, 1, 3])
def test_where_each_map_comes_from(stage, scope):
    auxiliary, x = tail(stage), map_of(stage)
    bank = full_bank('all')
    if scope != 'all':
        for level in range(4):
            if scope == 'off' or level >= max(stage, 0):
                del bank._maps[level]
    tail_of_stage = auxiliary.block(x)
    assert tail_of_stage.shape == (2, 4, *x.shape[2:])
    features = auxiliary.features(x, step_with(bank))
    for level, (feature, channels, size) in enumerate(zip(features, CHANNELS, SIZES)):
        banked = bank.get(level)
        if level == stage:
            torch.testing.assert_close(feature, tail_of_stage)
        elif level > stage:
            pooled = auxiliary.shortcuts[str(level)](tail_of_stage)
            torch.testing.assert_close(feature, pooled if banked is None else pooled + banked)
        elif banked is not None:
            assert feature is banked
        else:
            assert feature.shape == (2, channels, size, size) and feature.abs().sum() == 0


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_a_detector_trains_each_module_by_its_own_loss(scope):
    model = build(retinanet(auxiliary=dict(type='StageTail', head=HEAD, channels=8)))
    trainer = Trainer(model, scope=scope)
    gradients = trainer.gradients(batch())
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(g.isfinite().all() for g in gradients.values())


def test_a_light_head_sets_the_channels():
    auxiliary = tail(1, channels=None, head=dict(type='LightRetinaNet', num_classes=3, channels=6))
    assert auxiliary.block(map_of(1)).shape[1] == 6


def test_a_classifier_sees_the_pooled_features_of_earlier_modules():
    cfg = classifier('BN')
    head = dict(type='ImageClassifier', neck=cfg.model.neck, head=cfg.model.head)
    torch.manual_seed(0)
    model = build_model(localize(cfg, 4, auxiliary=dict(type='StageTail', head=head))).train()
    model.init_weights()
    third = model.backbone.auxiliary[2]
    earlier = third.cut_point.earlier_channels
    x = torch.rand(2, third.cut_point.channels, 8, 8)
    bank = FeatureBank('past')
    maps = [torch.rand(2, c, 4, 4) for c in earlier]
    for banked in maps:
        bank.put_pooled(banked)
    (joined,) = third.features(x, step_with(bank))
    expected = torch.cat([third.block(x).mean((2, 3)), *(m.mean((2, 3)) for m in maps)], 1)
    torch.testing.assert_close(joined[..., 0, 0], expected)
    assert third.head.head.fc.in_features == expected.shape[1]
    (empty,) = third.features(x, step_with(FeatureBank('off')))
    assert empty.shape == joined.shape and (empty[:, third.channels :] == 0).all()


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(head=None), 'learns from a head of its own'),
        (dict(head='LightRetinaNet'), 'learns from a head of its own'),
        (dict(loss_weight=0), 'loss_weight=0'),
    ],
)
def test_configs_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message):
        tail(1, **settings)
