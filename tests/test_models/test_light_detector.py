"""A small RetinaNet as the own head of an auxiliary network."""

import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from fba_mm import LocalLearningError, SlicedFocalLoss
from fba_mm.checkpoint import export_checkpoint
from fba_mm.config import load_config
from fba_mm.local.task_loss import task_loss
from fba_mm.models import light_detector

from ..conftest import NUM_CLASSES, batch, build, retinanet
from ..local_training import Trainer

SOURCE = dict(type='FeatureStub', channels=[8, 16, 24, 32])


def light(num_classes: int = NUM_CLASSES, **settings) -> dict:
    """An auxiliary network with the light detector."""
    head = dict(type='LightRetinaNet', num_classes=num_classes, channels=16)
    return dict(type='SLM', channels=16, head=dict(head, **settings))


def head(**settings) -> torch.nn.Module:
    return MODELS.build(dict(light()['head'], backbone=dict(SOURCE), **settings))


def test_is_mmdets_retinanet_made_light():
    """Its config is mmdet's own but for channels, convolutions, anchors and the loss's slices."""
    model = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    model.backbone = SOURCE
    model.pop('data_preprocessor')
    model.neck.update(in_channels=SOURCE['channels'], out_channels=64)
    model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    model.bbox_head.anchor_generator.update(scales_per_octave=1, ratios=[1.0])
    expected = MODELS.build(dict(model, type='mmdet.RetinaNet'))
    built = MODELS.build(dict(type='LightRetinaNet', num_classes=80, backbone=SOURCE))
    assert type(built) is type(expected)
    assert isinstance(built.bbox_head.loss_cls, SlicedFocalLoss)
    ours, theirs = dict(vars(built.bbox_head.assigner)), dict(vars(expected.bbox_head.assigner))
    assert type(ours.pop('iou_calculator')) is type(theirs.pop('iou_calculator'))
    assert ours == theirs
    built.load_state_dict(expected.state_dict(), strict=True)
    features = tuple(
        torch.rand(2, channels, 64 // 2**i, 64 // 2**i)
        for i, channels in enumerate(SOURCE['channels'])
    )
    data = batch(256)
    inputs = torch.stack(data['inputs']).float()
    losses, expected = (
        task_loss(model, model.backbone, features, inputs, data['data_samples'])
        for model in (built, expected)
    )
    assert set(losses) == {'loss_cls', 'loss_bbox'}
    assert losses['loss_bbox'] > 0
    expected = {name: sum(levels) for name, levels in expected.items()}
    torch.testing.assert_close(losses, expected)


@pytest.mark.slow
@pytest.mark.parametrize('num_modules', [4, 'blocks'])
def test_a_module_trains_with_it(num_modules):
    model = build(retinanet(num_modules=num_modules, auxiliary=light()))
    trainer = Trainer(model)
    gradients = trainer.gradients(batch())
    for name, _ in model.named_parameters():
        assert gradients[name].abs().sum() > 0, name
    before = trainer.step(batch()), trainer.log
    for _ in range(5):
        after = trainer.step(batch()), trainer.log
    losses = [f'local_{i + 1}.loss' for i in range(len(model.backbone.auxiliary))]
    assert all(0 < after[1][name] < before[1][name] for name in losses)
    assert after[0]['loss'] < before[0]['loss']


def test_neck_takes_the_auxiliarys_channels():
    auxiliary = build(retinanet(num_modules=4, auxiliary=light())).backbone.auxiliary
    for each in auxiliary:
        channels = [conv.conv.in_channels for conv in each.head.neck.lateral_convs]
        assert channels == each.level_channels[1:]


def test_everything_can_be_set():
    built = head(
        stacked_convs=2,
        scales_per_octave=2,
        octave_base_scale=3,
        ratios=[0.5, 2.0],
        strides=[4, 8, 16, 32],
        loss_cls=dict(type='mmdet.QualityFocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='mmdet.SmoothL1Loss'),
        neck=dict(start_level=0, add_extra_convs='on_output'),
        bbox_head=dict(reg_decoded_bbox=True, feat_channels=24),
        train_cfg=dict(allowed_border=3, assigner=dict(type='mmdet.ATSSAssigner', topk=9)),
    )
    assert (built.neck.start_level, built.neck.add_extra_convs) == (0, 'on_output')
    bbox_head = built.bbox_head
    assert len(bbox_head.cls_convs) == 2 and bbox_head.num_base_priors == 4
    assert bbox_head.prior_generator.base_sizes == [4, 8, 16, 32]
    assert bbox_head.prior_generator.octave_base_scale == 3
    assert (bbox_head.feat_channels, bbox_head.reg_decoded_bbox) == (24, True)
    assert type(bbox_head.loss_cls).__name__ == 'QualityFocalLoss'
    assert type(bbox_head.loss_bbox).__name__ == 'SmoothL1Loss'
    assert type(bbox_head.assigner).__name__ == 'ATSSAssigner'
    assert type(bbox_head.sampler).__name__ == 'PseudoSampler'
    assert bbox_head.train_cfg['allowed_border'] == 3


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain'])
def test_any_default_scope(scope):
    if scope != 'mmengine':
        pytest.importorskip(f'{scope}.models')
    with DefaultScope.overwrite_default_scope(scope):
        assert head().bbox_head.num_classes == NUM_CLASSES


def test_config_is_left_as_it_was():
    given = dict(
        light()['head'],
        backbone=dict(SOURCE),
        neck=dict(start_level=0),
        train_cfg=dict(pos_weight=2),
    )
    before = str(given)
    MODELS.build(given)
    assert str(given) == before


def test_checkpoints_of_the_stock_model():
    stock = build(retinanet(num_modules=None))
    model = build(retinanet(auxiliary=light()))
    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))['state_dict']
    assert set(exported) == set(stock.state_dict())
    stock.load_state_dict(exported, strict=True)
    # The model's own parts take a stock checkpoint; what is missing belongs to the heads.
    loaded = model.load_state_dict(stock.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all('.auxiliary.' in key for key in loaded.missing_keys)


# What a user gets wrong


def test_check():
    model = build(retinanet(num_modules=4, auxiliary=light()))
    for auxiliary in model.backbone.auxiliary:
        auxiliary.check(model, model.backbone)
    model = build(retinanet(num_modules=4, auxiliary=light(num_classes=7)))
    with pytest.raises(LocalLearningError, match='predicts 7 classes, the model 3'):
        model.backbone.auxiliary[0].check(model, model.backbone)
    model = build(retinanet(num_modules=4, auxiliary=light(bbox_head=dict(in_channels=5))))
    with pytest.raises(LocalLearningError, match='does not fit its own maps'):
        model.backbone.auxiliary[0].check(model, model.backbone)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(chanels=8), 'cannot be built as a LightRetinaNet: .*chanels'),
        (dict(backbone=dict(type='mmdet.ResNet', depth=18)), 'has a backbone: leave it out'),
        (dict(loss_cls=dict(type='SlicedFocalLoss', use_sigmoid=False)), 'set use_sigmoid=True'),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        build(retinanet(num_modules=4, auxiliary=light(**settings)))
    assert '\n' not in str(caught.value)


def test_classes_must_be_told():
    auxiliary = light()
    del auxiliary['head']['num_classes']
    with pytest.raises(LocalLearningError, match='num_classes'):
        build(retinanet(num_modules=4, auxiliary=auxiliary))


def test_channels_must_be_told():
    with pytest.raises(LocalLearningError, match=r"channels.*backbone=dict\(type='FeatureStub'"):
        MODELS.build(dict(light()['head'], backbone=dict(type='FeatureStub')))


def test_without_mmdet(monkeypatch):
    monkeypatch.setattr(light_detector, 'find_spec', lambda name: None)
    with pytest.raises(LocalLearningError, match='needs mmdet, which is not installed: pip'):
        build(retinanet(num_modules=4, auxiliary=light()))


@pytest.mark.slow
def test_the_package_needs_no_mmdet():
    """Users of other OpenMMLab packages don't have it."""
    code = (
        "import sys; sys.modules['mmdet'] = None; import fba_mm; "
        'from mmengine.registry import MODELS; '
        "assert 'LightRetinaNet' in MODELS and 'SlicedFocalLoss' in MODELS"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def objects(*boxes) -> InstanceData:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)) % NUM_CLASSES)


def test_targets_are_mmdets():
    """Objects of all sizes, on each other, at the border, too small for any anchor, and none."""
    from mmdet.models.dense_heads import RetinaHead

    ours = head().bbox_head
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    metas = [dict(img_shape=(128, 192), pad_shape=shape) for shape in ((128, 192), (96, 150))]
    anchors, flags = ours.get_anchors(sizes, metas, device='cpu')
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, generator=generator) * 100
    many = torch.cat([corners, corners + torch.rand(20, 2, generator=generator) ** 2 * 90 + 1], 1)
    cases = [
        [objects(*many[:10].tolist()), objects(*many[10:].tolist())],
        [objects([10, 10, 60, 60], [10, 10, 60, 60], [12, 10, 60, 60]), objects()],
        [
            objects([0, 0, 2, 2], [150, 100, 191, 127], [-20, -20, 30, 30]),
            objects([0, 0, 190, 120]),
        ],
    ]
    for case in cases:
        got = ours.get_targets(anchors, flags, case, metas)
        expected = RetinaHead.get_targets(ours, anchors, flags, case, metas)
        assert got[-1] == expected[-1] and len(got) == len(expected) == 5
        for kind, (mine, theirs) in enumerate(zip(got[:-1], expected[:-1])):
            for level, (one, other) in enumerate(zip(mine, theirs)):
                assert one.shape == other.shape and one.dtype == other.dtype
                torch.testing.assert_close(one, other, msg=f'kind {kind}, level {level}')


def test_other_assigners_are_asked():
    built = head(train_cfg=dict(assigner=dict(type='mmdet.ATSSAssigner', topk=9))).bbox_head
    assert not built._assigns_by_masks() and head().bbox_head._assigns_by_masks()
