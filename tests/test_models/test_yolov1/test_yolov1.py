"""YOLOv1 as a detector: it learns, by back-propagation and locally, and its parts fit together."""

import copy

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps

from fba_mm.checkpoint import export_checkpoint
from tests.conftest import NUM_CLASSES, batch, build
from tests.local_training import Trainer

from .small_yolov1 import small_head, yolov1


def own(norm=None) -> dict:
    """An auxiliary network with a head of its own."""
    return dict(type='SLM', head=dict(type='YOLOV1', bbox_head=small_head(norm)))


WAYS = {
    'back-propagation': dict(num_modules=1),
    'shared head': dict(num_modules=3),
    'own head': dict(num_modules=3, auxiliary=own()),
    'blocks': dict(num_modules='blocks'),
}


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_it_learns(way):
    """The objects of two images by heart."""
    model = build(yolov1(**WAYS[way]))
    trainer, data = Trainer(model, optimizer=_adam), batch()
    for sample in data['data_samples']:
        # In cells of their own.
        sample.gt_instances.bboxes[:] = torch.tensor([[4.0, 4, 30, 40], [30, 36, 62, 60]])
    first = trainer.step(copy.deepcopy(data))['loss']
    for _ in range(50):
        last = trainer.step(copy.deepcopy(data))['loss']
    assert last < 0.1 * first
    with torch.no_grad():
        found = model.eval().test_step(copy.deepcopy(data))
    for sample, truth in zip(found, data['data_samples']):
        instances, truth = sample.pred_instances, truth.gt_instances
        overlaps = bbox_overlaps(truth.bboxes, instances.bboxes)
        right = (
            (overlaps > 0.5)
            & (truth.labels[:, None] == instances.labels)
            & (instances.scores > 0.3)
        )
        assert right.any(1).all(), way


@pytest.mark.parametrize('way', ['shared head', 'own head', 'blocks'])
@pytest.mark.parametrize('scope', ['past', 'all'])
def test_every_module_gets_a_gradient(way, scope):
    model = build(yolov1(norm=dict(type='BN'), **WAYS[way]))
    trainer = Trainer(model, scope=scope)
    gradients = trainer.gradients(batch())
    for name, _ in model.named_parameters():
        assert gradients[name].abs().sum() > 0, name
    assert set(trainer.log) >= {f'local_{i + 1}.loss' for i in range(len(model.backbone.auxiliary))}


@pytest.mark.parametrize('way', ['back-propagation', 'shared head', 'own head'])
@pytest.mark.parametrize('images', [3, 5])
def test_a_few_images_at_a_time(way, images):
    """The same losses and gradients, with slices of unequal length."""
    data, found = batch(images=images), {}
    # An image without objects has a loss of its own as well.
    data['data_samples'][1].gt_instances = data['data_samples'][1].gt_instances[:0]
    for size in (None, 2):
        model = build(yolov1(**WAYS[way]))
        model.backbone.head_batch_size = size
        trainer = Trainer(model)
        gradients = trainer.gradients(copy.deepcopy(data))
        found[size] = gradients, dict(trainer.log), trainer.step(copy.deepcopy(data))
    for ours, theirs in zip(found[2], found[None]):
        assert set(ours) == set(theirs)
        for name in ours:
            torch.testing.assert_close(
                torch.as_tensor(ours[name]),
                torch.as_tensor(theirs[name]),
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, name=name: f'{name}: {text}',
            )


@pytest.mark.parametrize(
    'norm, slices', [(None, 2), (dict(type='GN', num_groups=4), 2), (dict(type='BN'), 1)]
)
def test_slices_only_where_they_are_exact(norm, slices):
    model = build(yolov1(norm=norm))
    model.backbone.head_batch_size = 1
    trainer = Trainer(model)
    seen = []
    model.bbox_head.register_forward_hook(lambda head, args, out: seen.append(len(args[0][-1])))
    trainer.step(batch())
    assert seen == [2 // slices] * slices * model.backbone.num_modules


def test_export():
    model, stock = build(yolov1()), build(yolov1(num_modules=None))
    Trainer(model).step(batch())
    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))['state_dict']
    stock.load_state_dict(exported, strict=True)
    predictions = []
    for one in (model, stock):
        one.test_cfg.score_thr = one.bbox_head.test_cfg.score_thr = 0.0
        with torch.no_grad():
            predictions.append(one.eval().test_step(batch()))
    for ours, theirs in zip(*predictions):
        assert len(ours.pred_instances) > 0
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(ours.pred_instances[key], theirs.pred_instances[key])


def test_images_of_any_size():
    """The grid goes with the input, which the preprocessor pads."""
    model = build(yolov1())
    loss = Trainer(model).step(batch(size=70))
    assert torch.tensor(list(loss.values())).isfinite().all()
    with torch.no_grad():
        model.eval().test_step(batch(size=40))
    assert model.bbox_head.num_classes == NUM_CLASSES
