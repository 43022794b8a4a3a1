"""A head fed a few images at a time learns what it would from the whole batch."""

import pytest
import torch

from fba_mm import AmpLocalOptimWrapper, LocalLearningError
from fba_mm.analysis import StorageTracker
from fba_mm.local.head_batches import can_be_split, slices_of

from ..conftest import batch, build, needs_float16, own_head, retinanet
from ..local_training import Trainer

AUXILIARIES = dict(shared=lambda: dict(type='SLM'), own=own_head)


def model_with(size, num_modules=4, auxiliary=None, **settings):
    cfg = retinanet(num_modules=num_modules, auxiliary=auxiliary or dict(type='SLM'), **settings)
    cfg['backbone']['head_batch_size'] = size
    return cfg


def uneven_batch(size=64):
    """Three images: one with two boxes, one with a single box, one with none."""
    data = batch(size, images=3)
    data['data_samples'][1].gt_instances = data['data_samples'][1].gt_instances[:1]
    data['data_samples'][2].gt_instances = data['data_samples'][2].gt_instances[:0]
    return data


def results(cfg, data, **kwargs):
    """Losses, local losses and gradients of one step."""
    trainer = Trainer(build(cfg), **kwargs)
    gradients = trainer.gradients(data)
    torch.manual_seed(0)
    losses = Trainer(build(cfg), **kwargs)
    log = losses.step(data)
    return dict(log, **{name: float(v) for name, v in losses.log.items()}), gradients


@pytest.mark.slow
@pytest.mark.parametrize('auxiliary', sorted(AUXILIARIES))
@pytest.mark.parametrize(
    'num_modules, scope, size',
    [(1, 'past', 2), (4, 'past', 1), (4, 'all', 2), ('blocks', 'past', 1)],
)
def test_the_same_losses_and_gradients(num_modules, scope, auxiliary, size):
    make = AUXILIARIES[auxiliary]
    data = uneven_batch()
    whole, expected = results(model_with(None, num_modules, make()), data, scope=scope)
    fed, gradients = results(model_with(size, num_modules, make()), data, scope=scope)
    assert fed.keys() == whole.keys()
    for name, value in whole.items():
        assert fed[name] == pytest.approx(value, rel=1e-5), name
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-5 * float(gradient.abs().max()) + 1e-9
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=tolerance, msg=name)


def test_weights_of_losses_are_kept():
    auxiliary = dict(type='SLM', loss_weight=0.3)
    whole, expected = results(model_with(None, auxiliary=dict(auxiliary)), uneven_batch())
    fed, gradients = results(model_with(1, auxiliary=dict(auxiliary)), uneven_batch())
    assert fed == pytest.approx(whole, rel=1e-5)
    name = 'backbone.backbone.layer1.0.conv1.weight'
    torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(apply='eager'),
        dict(accumulative_counts=2),
        pytest.param(
            dict(wrapper=AmpLocalOptimWrapper, dtype='float16', loss_scale=64.0),
            marks=needs_float16,
        ),
        dict(wrapper=AmpLocalOptimWrapper, dtype='bfloat16', apply='eager'),
    ],
    ids=['eager', 'accumulation', 'float16', 'bfloat16'],
)
def test_training_goes_the_same_way(kwargs):
    # In bfloat16, torch's convolutions on CPU leave gradients unset on maps of one position.
    data = uneven_batch(size=128)
    trained = []
    for size in (None, 1):
        trainer = Trainer(build(model_with(size)), **kwargs)
        for _ in range(2):
            trainer.step(data)
        trained.append(trainer.model.state_dict())
    start = build(model_with(None)).state_dict()
    for name, value in trained[0].items():
        if not value.is_floating_point():
            continue
        # Half precision rounds the sum over images and the sum over slices apart.
        moved = float((value - start[name]).norm())
        apart = float((trained[1][name] - value).norm())
        assert apart <= (0.05 if 'wrapper' in kwargs else 1e-4) * moved + 1e-6, name


def test_the_head_sees_few_images_and_the_backbone_all():
    model = build(model_with(1))
    seen = dict(head=[], backbone=[])
    model.bbox_head.register_forward_pre_hook(lambda _, args: seen['head'].append(len(args[0][0])))
    model.backbone.backbone.conv1.register_forward_pre_hook(
        lambda _, args: seen['backbone'].append(len(args[0]))
    )
    Trainer(model).step(uneven_batch())
    assert seen == dict(head=[1] * 12, backbone=[3])


def test_evaluation_is_untouched():
    data = uneven_batch()
    model = build(model_with(1)).eval()
    stock = build(model_with(None)).eval()
    with torch.no_grad():
        a, b = model.test_step(data), stock.test_step(data)
    for one, other in zip(a, b):
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
    # The targets and the methods are the head's own again.
    trainer = Trainer(model.train())
    trainer.step(data)
    assert 'get_targets' not in vars(model.bbox_head)
    assert 'get_anchors' not in vars(model.bbox_head)


@pytest.mark.slow
def test_memory_of_the_head_does_not_grow_with_the_batch():
    peaks = {}
    for size in (None, 1):
        for images in (2, 6):
            cfg = model_with(size)
            # A head that outweighs the backbone.
            cfg['bbox_head']['anchor_generator']['scales_per_octave'] = 9
            trainer = Trainer(build(cfg), apply='eager')
            data = batch(images=images)
            trainer.step(data)
            with StorageTracker() as tracker:
                trainer.step(data)
            peaks[size, images] = tracker.peak
    grown = {size: peaks[size, 6] - peaks[size, 2] for size in (None, 1)}
    assert grown[1] < 0.7 * grown[None]
    assert peaks[1, 6] < 0.8 * peaks[None, 6]


# Where slices would not sum to the whole


def norm_in_the_neck(cfg):
    cfg['neck']['norm_cfg'] = dict(type='BN')


def histogram_loss(cfg):
    cfg['bbox_head']['loss_cls'] = dict(
        type='GHMC', bins=10, momentum=0.75, use_sigmoid=True, loss_weight=1.0
    )


def two_stages(cfg):
    from fba_mm.config import load_config

    faster_rcnn = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    faster_rcnn.neck.in_channels = [64, 128, 256, 512]
    faster_rcnn.roi_head.bbox_head.fc_out_channels = 32
    faster_rcnn.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=16)
    faster_rcnn.train_cfg.rcnn.sampler.num = 8
    backbone = dict(cfg['backbone'], backbone=dict(faster_rcnn.backbone, depth=18, init_cfg=None))
    cfg.clear()
    cfg.update(faster_rcnn, backbone=backbone)


def another_loss(cfg):
    cfg.update(type='FCOS')
    cfg['bbox_head'] = dict(
        type='FCOSHead',
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        strides=[8, 16, 32, 64, 128],
        norm_cfg=None,
    )


def test_a_loss_of_a_users_by_a_known_name():
    """Nobody knows whether it is a sum."""
    model = build(model_with(1))

    class FocalLoss(type(model.bbox_head.loss_cls)):
        """Another module's."""

    model.bbox_head.loss_cls = FocalLoss(use_sigmoid=True)
    assert not can_be_split(model, model.backbone)


@pytest.mark.slow
@pytest.mark.parametrize('change', [norm_in_the_neck, histogram_loss, two_stages, another_loss])
def test_the_whole_batch_where_it_is_needed(change):
    cfg = model_with(1)
    model = build(cfg)
    assert can_be_split(model, model.backbone)
    change(cfg)
    model = build(cfg)
    assert not can_be_split(model, model.backbone)
    seen = []
    head = getattr(model, 'bbox_head', None) or model.rpn_head
    head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0][0])))
    Trainer(model).step(batch(size=128))
    assert seen == [2] * 4


def test_slices():
    assert slices_of(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert slices_of(5, None) == slices_of(5, 5) == slices_of(5, 9) == [slice(0, 5)]


@pytest.mark.parametrize(
    'num_modules, size, images, height, expected',
    [
        (4, None, 64, 800, 1),
        (4, None, 64, 512, 1),
        (4, None, 64, 256, 2),
        (4, None, 64, 64, 8),
        (4, None, 17, 64, 8),
        (4, None, 16, 64, None),
        (4, None, 1, 800, None),
        (4, None, 2, 800, 1),
        (4, 3, 64, 800, 3),
        (4, 3, 4, 64, 3),
        (1, None, 64, 800, None),
    ],
)
def test_images_at_once(num_modules, size, images, height, expected):
    """As few as have 512×512 pixels, or all if they have twice as many; BP stays as it is."""
    backbone = build(model_with(size, num_modules)).backbone
    assert backbone.images_at_once(torch.empty(images, 3, height, 512, device='meta')) == expected


def test_by_the_size_of_the_images(monkeypatch):
    monkeypatch.setattr('fba_mm.local.local_backbone._HEAD_PIXELS', 64 * 64 // 2)
    model = build(model_with(None))
    seen = []
    model.bbox_head.register_forward_hook(lambda head, x, y: seen.append(len(x[0][0])))
    trainer = Trainer(model)
    trainer.step(batch())
    assert seen == [1] * 8  # Two images, four modules.
    seen.clear()
    trainer.hook.invalid_loss = 'skip'
    trainer.step(batch())
    assert seen == [2] * 4


@pytest.mark.parametrize('size', [0, -1, True, 1.5, 'one'])
def test_sizes_that_are_none(size):
    with pytest.raises(LocalLearningError, match='head_batch_size=.*: give a number of images'):
        build(model_with(size))
