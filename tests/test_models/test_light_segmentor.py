"""A small segmentor as the own head of an auxiliary network."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

from fba_mm import LocalLearningError
from fba_mm.local.task_loss import task_loss
from fba_mm.models import light_segmentor

from ..conftest import build
from ..segmentation import LIGHT, NUM_CLASSES, labelled_batch, segmentor

SOURCE = dict(type='FeatureStub', channels=[8, 16, 24])
MAPS = [(2, 8, 16, 16), (2, 16, 8, 8), (2, 24, 4, 4)]


@pytest.fixture(autouse=True, params=['mmseg', 'mmdet'])
def _scope(request):
    """Whatever the scope of the model around is."""
    with DefaultScope.overwrite_default_scope(request.param):
        yield


def head(**settings) -> torch.nn.Module:
    return MODELS.build(dict(LIGHT['head'], backbone=dict(SOURCE), **settings))


@pytest.mark.parametrize('stride, count', [(1, 64), (4, 16), (5, 13)])
def test_the_loss_is_that_of_every_nth_pixel(stride, count):
    model, data = head(label_stride=stride), labelled_batch()
    features = [torch.rand(shape) for shape in MAPS]
    losses = task_loss(
        model, model.backbone, features, torch.stack(data['inputs']), data['data_samples']
    )
    start = stride // 2
    labels = torch.stack(
        [sample.gt_sem_seg.data[0, start::stride, start::stride] for sample in data['data_samples']]
    )
    assert labels.shape == (2, count, count)
    logits = F.interpolate(model.decode_head(features), labels.shape[1:], mode='bilinear')
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction='sum') / labels.numel()
    torch.testing.assert_close(losses['decode.loss_ce'], expected)


def test_all_maps_take_part_at_the_positions_of_one():
    for positions, size in ((0, 16), (1, 8), (2, 4), (9, 4)):
        model = head(positions_of=positions)
        features = [torch.rand(shape, requires_grad=True) for shape in MAPS]
        logits = model.decode_head(features)
        assert logits.shape == (2, NUM_CLASSES, size, size)
        logits.square().sum().backward()
        assert all(feature.grad.any() for feature in features)
        assert all(
            parameter.grad.any()
            for name, parameter in model.named_parameters()
            if name != 'decode_head.fuse.conv.bias'
        )


@pytest.mark.parametrize(
    'own_levels, in_index, read',
    [(None, None, [0, 1, 2]), ([1, 2], None, [1, 2]), ([2], None, [2]), ([2], [0, 2], [0, 2])],
)
def test_the_maps_that_are_read(own_levels, in_index, read):
    """Those that aren't the bank's, unless others are asked for; positions are the same."""
    settings = {} if in_index is None else dict(in_index=in_index)
    model = MODELS.build(
        dict(LIGHT['head'], backbone=dict(SOURCE, own_levels=own_levels), **settings)
    )
    features = [torch.rand(shape, requires_grad=True) for shape in MAPS]
    logits = model.decode_head(features)
    assert logits.shape == (2, NUM_CLASSES, 8, 8)
    logits.square().sum().backward()
    assert [i for i, feature in enumerate(features) if feature.grad is not None] == read


def test_labels_of_small_images():
    sample = labelled_batch((1, 3))['data_samples'][:1]
    assert head(label_stride=8).decode_head._stack_batch_gt(sample).shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(chanels=8), 'cannot be built as a LightFCN: .*chanels'),
        (dict(label_stride=0), 'label_stride=0: give a number from 1'),
        (dict(in_index=[1, 9]), r'in_index=\[1, 9\]: give some of \[0, 1, 2, 3\]'),
        (dict(in_index=3), r'in_index=3: give some of'),
        (dict(in_index=[]), r'in_index=\[\]: give some of'),
    ],
)
def test_settings_that_are_refused(settings, message):
    auxiliary = dict(LIGHT, head=dict(LIGHT['head'], **settings))
    with pytest.raises(LocalLearningError, match=message) as caught:
        build(segmentor(auxiliary=auxiliary))
    assert '\n' not in str(caught.value)


def test_channels_must_be_told():
    with pytest.raises(LocalLearningError, match=r"channels.*backbone=dict\(type='FeatureStub'"):
        MODELS.build(dict(LIGHT['head'], backbone=dict(type='FeatureStub')))


def test_other_classes_are_refused():
    model = build(segmentor(auxiliary=dict(LIGHT, head=dict(LIGHT['head'], num_classes=7))))
    with pytest.raises(LocalLearningError, match='predicts 7 classes, the model 4'):
        model.backbone.auxiliary[0].check(model, model.backbone)


def test_without_mmseg(monkeypatch):
    monkeypatch.setattr(light_segmentor, 'find_spec', lambda name: None)
    with pytest.raises(LocalLearningError, match='needs mmseg, which is not installed: pip'):
        head()
