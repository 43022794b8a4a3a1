"""The task's own loss on given features, and nothing else of the model."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm.local.task_loss import FeatureStub, task_loss

from ..conftest import batch, build, own_head, retinanet
from ..super_resolution import editor, patches


def detector_with_norms():
    cfg = retinanet(num_modules=2)
    cfg['neck']['norm_cfg'] = dict(type='BN')
    return build(cfg)


def maps(requires_grad=False):
    return tuple(
        torch.rand(2, 8 * 2**i, 16 // 2**i, 16 // 2**i, requires_grad=requires_grad)
        for i in range(4)
    )


def test_loss_is_that_of_neck_and_head():
    model = detector_with_norms()
    data = model.data_preprocessor(batch(), training=True)
    features = maps(requires_grad=True)
    losses = task_loss(model, model.backbone, features, **data)
    expected = model.bbox_head.loss(model.neck(features), data['data_samples'])
    assert losses.keys() == expected.keys() == {'loss_cls', 'loss_bbox'}
    for name in losses:
        assert all(torch.equal(a, b) for a, b in zip(losses[name], expected[name]))
    model.parse_losses(losses)[0].backward()
    assert all(f.grad is not None for f in features[1:])  # The neck starts at the second.
    assert all(p.grad is None for p in model.backbone.parameters())


def test_an_own_model_answers_by_its_source():
    head = dict(own_head()['head'], backbone=dict(type='FeatureStub'))
    head['neck'] = dict(head['neck'], in_channels=[8, 16, 32, 64])
    model = build(head)
    assert type(model.backbone) is FeatureStub is MODELS.get('FeatureStub')
    assert not list(model.backbone.parameters())
    data = build(retinanet(num_modules=None)).data_preprocessor(batch(), training=True)
    features = maps()
    losses = task_loss(model, model.backbone, features, **data)
    expected = model.bbox_head.loss(model.neck(features), data['data_samples'])
    for name in losses:
        assert all(torch.equal(a, b) for a, b in zip(losses[name], expected[name]))


@pytest.mark.parametrize('failing', [False, True])
def test_answering_ends(failing):
    source = FeatureStub()
    features = maps()
    try:
        with source.answering(features):
            assert source(torch.zeros(1)) is features
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert source(torch.zeros(1)) is None


def test_running_statistics_stay_out_of_it():
    model = detector_with_norms()
    data = model.data_preprocessor(batch(), training=True)
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        task_loss(model, model.backbone, maps(), **data)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    with torch.no_grad():
        model.neck(maps())
    assert not all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_model_without_a_loss_method_is_asked_past_its_hooks():
    model = build(editor(2))
    data = model.data_preprocessor(patches(), True)
    called = []
    model.register_forward_pre_hook(lambda *_: called.append('before'))
    model.register_forward_hook(lambda *_: called.append('after'))
    image = torch.rand(2, 3, 24, 24, requires_grad=True)
    losses = task_loss(model, model.generator, image, **data)
    assert torch.equal(losses['loss'], model.pixel_loss(image, data['data_samples'].gt_img))
    losses['loss'].backward()
    assert image.grad.abs().sum() > 0 and not called


def test_heads_may_change_the_form_of_their_targets():
    """As RTMDet-Ins does with masks: the next module's head gets them as they were."""
    model = detector_with_norms()
    data = model.data_preprocessor(batch(), training=True)
    original, seen = model.bbox_head.loss, []

    def loss(features, samples, **kwargs):
        losses = original(features, samples, **kwargs)
        seen.append(samples[0].gt_instances.bboxes.shape)
        for sample in samples:
            sample.gt_instances.bboxes = sample.gt_instances.bboxes[:, :2]
            del sample.ignored_instances
        return losses

    model.bbox_head.loss = loss
    for _ in range(2):
        task_loss(model, model.backbone, maps(), **data)
    assert seen == [(2, 4), (2, 4)] and 'ignored_instances' in data['data_samples'][0]
