"""DGL for detectors: the maps that it makes, that it learns, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local import FeatureBank, LocalStep

from ...conftest import NUM_CLASSES, batch, build, own_head, retinanet
from ...local_training import Trainer

CHANNELS, SIZES = (8, 16, 32, 64), (16, 8, 4, 2)


def dgl_fpn(num_classes: int = NUM_CLASSES, **settings) -> dict:
    """DGL with the pyramid and head of :func:`own_head`."""
    return dict(dict(type='DGLFPN', head=own_head(num_classes=num_classes)['head']), **settings)


def auxiliary_of(stage: int):
    wrapped = LocalBackbone(retinanet(num_modules=None)['backbone'], 'stages', auxiliary=dgl_fpn())
    return wrapped.auxiliary[stage]


def step_of(size=(64, 64)) -> LocalStep:
    return LocalStep(None, None, torch.zeros(2, 3, *size), None, FeatureBank('off'), None)


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_the_modules_map_at_all_sizes(stage):
    """Resized with nothing else, so that a neck sees what the module knows of every place."""
    auxiliary = auxiliary_of(stage).eval()
    x = torch.rand(2, CHANNELS[stage], SIZES[stage], SIZES[stage])
    maps = auxiliary.features(x, step_of())
    own = auxiliary.convs(x)
    assert [tuple(m.shape) for m in maps] == [(2, CHANNELS[stage], s, s) for s in SIZES]
    for level, (found, size) in enumerate(zip(maps, SIZES)):
        if level == stage:
            assert torch.equal(found, own)
        elif level > stage:
            torch.testing.assert_close(found, F.avg_pool2d(own, SIZES[stage] // size))
        else:
            torch.testing.assert_close(found, F.interpolate(own, (size, size), mode='bilinear'))
    assert len([m for m in auxiliary.convs if isinstance(m, torch.nn.Conv2d)]) == 3
    assert [conv.conv.in_channels for conv in auxiliary.head.neck.lateral_convs] == [
        CHANNELS[stage]
    ] * 3


@pytest.mark.parametrize('size', [(75, 90), (33, 64)])
def test_maps_of_odd_sizes_fit(size):
    wrapped = LocalBackbone(
        retinanet(num_modules=None)['backbone'], 'blocks', auxiliary=dgl_fpn()
    ).eval()
    image = torch.rand(2, 3, *size)
    expected = [level.shape[2:] for level in wrapped(image)]
    x = image
    for segment, auxiliary in zip(wrapped.segments, wrapped.auxiliary):
        x = segment.run(wrapped.backbone, x)
        assert [m.shape[2:] for m in auxiliary.features(x, step_of(size))] == expected


def test_modules_learn_alone():
    """Each loss trains its module and its auxiliary network; the bank makes no difference."""
    model = build(retinanet(num_modules=4, auxiliary=dgl_fpn(loss_weight=2.0)))
    trainer = Trainer(model, scope='off')
    model.backbone.auxiliary[0].check(model, model.backbone)
    gradients = trainer.gradients(batch())
    for name, _ in model.named_parameters():
        assert gradients[name].abs().sum() > 0, name
    banked = build(retinanet(num_modules=4, auxiliary=dgl_fpn(loss_weight=2.0)))
    for name, gradient in Trainer(banked, scope='all').gradients(batch()).items():
        assert torch.equal(gradient, gradients[name]), name
    first = trainer.step(batch()), dict(trainer.log)
    for _ in range(5):
        last = trainer.step(batch()), dict(trainer.log)
    assert all(last[1][f'local_{i}.loss'] < first[1][f'local_{i}.loss'] for i in (1, 2, 3))
    assert last[0]['loss'] < first[0]['loss']


def test_loss_weight():
    losses = []
    for weight in (1.0, 3.0):
        model = build(retinanet(num_modules=2, auxiliary=dgl_fpn(loss_weight=weight)))
        trainer = Trainer(model)
        trainer.step(batch())
        losses.append(float(trainer.log['local_1.loss']))
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)


@pytest.mark.parametrize(
    'auxiliary, message',
    [
        (dict(type='DGLFPN'), 'auxiliary.head has no neck'),
        (dict(type='DGLFPN', head=dict(type='RetinaNet')), 'auxiliary.head has no neck'),
        (dict(type='DGLFPN', head=dict(neck=dict(type='FPN'))), 'auxiliary.head has no type'),
    ],
)
def test_heads_that_are_refused(auxiliary, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        build(retinanet(auxiliary=auxiliary))
    assert '\n' not in str(caught.value)


def test_other_classes_are_refused():
    model = build(retinanet(num_modules=2, auxiliary=dgl_fpn(num_classes=7)))
    with pytest.raises(LocalLearningError, match='predicts 7 classes, the model 3'):
        model.backbone.auxiliary[0].check(model, model.backbone)
