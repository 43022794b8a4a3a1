import pytest
import torch
from mmengine.config import Config
from torch import nn

from fba_mm import localize
from fba_mm.analysis import TrainingStep, predict_memory
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError

from ..segmentation import training
from ..super_resolution import rdn, swinir
from .small_configs import classifier, detector, super_resolution


def pipeline(*transforms, **dataset):
    return Config(
        dict(
            train_dataloader=dict(batch_size=3, dataset=dict(pipeline=list(transforms), **dataset))
        )
    )


@pytest.mark.parametrize(
    'cfg, size',
    [
        (pipeline(dict(type='Resize', scale=(1333, 800), keep_ratio=True)), (800, 1333)),
        (pipeline(dict(type='Resize', scale=(320, 200), keep_ratio=False)), (200, 320)),
        (pipeline(dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)])), (800, 1333)),
        (pipeline(dict(type='RandomResizedCrop', scale=224), dict(type='RandomFlip')), (224, 224)),
        (
            pipeline(
                dict(type='Resize', scale=(640, 480)), dict(type='RandomCrop', crop_size=(96, 128))
            ),
            (96, 128),
        ),
        (
            pipeline(
                dict(type='Resize', scale=(640, 480)),
                dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.3, 0.7)),
            ),
            (480, 640),
        ),
        (
            pipeline(
                dict(
                    type='RandomChoice',
                    transforms=[[dict(type='Resize', scale=64)], [dict(type='Resize', scale=96)]],
                )
            ),
            (96, 96),
        ),
        (
            pipeline(
                dict(type='Mosaic', img_scale=(640, 320)),
                dataset=dict(pipeline=[dict(type='Resize', scale=32)]),
            ),
            (320, 640),
        ),
        (
            pipeline(
                dict(type='SetValues', dictionary=dict(scale=3)),
                dict(type='PairedRandomCrop', gt_patch_size=144),
            ),
            (48, 48),
        ),
        (pipeline(dict(type='LoadImageFromFile')), (256, 256)),
    ],
    ids=str,
)
def test_size_from_the_pipeline(cfg, size):
    assert batch_shape(cfg) == (3, 3, *size)


def test_shape_of_packaged_configs():
    retinanet = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert batch_shape(retinanet) == (2, 3, 800, 1333)
    cifar = load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    assert batch_shape(cifar) == (16, 3, 32, 32)
    edsr = load_config('mmagic::edsr/edsr_x4c64b16_1xb16-300k_div2k.py')
    assert batch_shape(edsr) == (16, 3, 49, 49)


def test_a_segmentors_batch_has_the_shape_that_is_asked_for():
    """Its preprocessor would pad it to the size of the config's crops."""
    cfg = training()
    cfg.model.data_preprocessor.update(size=(128, 128), size_divisor=None)
    step = TrainingStep(cfg)
    data = synthetic_batch(step.model, (2, 3, 64, 96))
    seen = []
    step.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    step(data)
    assert seen == [(2, 3, 64, 96)]


def test_shape_of_a_config_that_says_nothing():
    assert batch_shape(Config()) == (2, 3, 256, 256)
    assert batch_shape(Config(dict(data_preprocessor=dict(mean=[0.0])))) == (2, 1, 256, 256)


def with_channels(cfg, channels):
    """A config for gray or multispectral images."""
    cfg.model.backbone.in_channels = channels
    for part in (cfg.model, cfg):
        if 'data_preprocessor' in part:
            part.data_preprocessor.update(mean=[127.5] * channels, std=[64.0] * channels)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    'cfg, channels, auxiliary',
    [
        (detector, 1, 'pooled'),
        (classifier, 1, None),
        (classifier, 4, None),
        (classifier, 1, dict(type='InfoPro', num_classes=5)),
    ],
)
def test_images_of_other_channels_than_three(cfg, channels, auxiliary):
    cfg = localize(with_channels(cfg(), channels), 2, auxiliary=auxiliary)
    assert batch_shape(cfg) == (2, channels, 256, 256)
    shape = (2, channels, 64, 64)
    step = TrainingStep(cfg)
    log = step(synthetic_batch(step.model, shape))
    assert log['loss'].isfinite()
    assert predict_memory(cfg, shape).total > 0


def test_channels_without_means():
    cfg = with_channels(classifier(), 4)
    cfg.pop('data_preprocessor')
    assert batch_shape(cfg)[1] == batch_shape(localize(cfg))[1] == 4


@pytest.mark.parametrize('cfg', [detector, classifier, training])
def test_models_train_on_it(cfg):
    step = TrainingStep(cfg())
    data = synthetic_batch(step.model, (2, 3, 64, 96))
    assert [image.shape for image in data['inputs']] == [(3, 64, 96)] * 2
    assert torch.isfinite(step(data)['loss'])
    assert torch.isfinite(step.loss_without_gradients(data))


@pytest.mark.parametrize('network', [rdn, swinir])
def test_targets_are_as_large_as_the_images_that_are_made(network):
    step = TrainingStep(super_resolution(network, scale=3))
    data = synthetic_batch(step.model, (2, 3, 10, 14))
    assert [image.shape for image in data['inputs']] == [(3, 10, 14)] * 2
    assert [sample.gt_img.shape for sample in data['data_samples']] == [(3, 30, 42)] * 2
    assert step.model.generator.training
    assert torch.isfinite(step(data)['loss'])
    assert torch.isfinite(step.loss_without_gradients(data))


def test_images_that_a_generator_cannot_take():
    model = TrainingStep(super_resolution(swinir)).model
    with pytest.raises(LocalLearningError, match='makes no image of 3×1×1 .*give another shape'):
        synthetic_batch(model, (2, 3, 1, 1))


def test_boxes_lie_in_the_image():
    step = TrainingStep(detector())
    for sample in synthetic_batch(step.model, (4, 3, 64, 96))['data_samples']:
        boxes, labels = sample.gt_instances.bboxes, sample.gt_instances.labels
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()
        assert (labels < 3).all() and 'masks' not in sample.gt_instances


def test_a_model_that_learns_masks_gets_masks():
    cfg = load_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = cfg.model.roi_head
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        extractor.out_channels = 16
    heads.bbox_head.update(in_channels=16, fc_out_channels=32)
    heads.mask_head.update(in_channels=16, conv_out_channels=16)
    step = TrainingStep(cfg)
    data = synthetic_batch(step.model, (1, 3, 64, 64))
    instances = data['data_samples'][0].gt_instances
    masks = torch.from_numpy(instances.masks.masks)
    assert masks.shape == (8, 64, 64)
    left, top, right, bottom = instances.bboxes[0].round().long()
    assert masks[0, top : bottom + 1, left : right + 1].all()
    assert masks[0].sum() == masks[0, top : bottom + 1, left : right + 1].sum()
    assert step(data)['loss_mask'] > 0


def test_a_detector_without_a_proposal_network_gets_proposals():
    model = TrainingStep(detector()).model
    assert 'proposals' not in synthetic_batch(model, (1, 3, 64, 64))['data_samples'][0]
    model.roi_head, model.with_rpn = _part(), False
    sample = synthetic_batch(model, (1, 3, 64, 64))['data_samples'][0]
    assert torch.equal(sample.proposals.bboxes, sample.gt_instances.bboxes)


def _part(**values) -> torch.nn.Module:
    part = torch.nn.Identity()
    vars(part).update(values)
    return part


def test_boxes_and_maps_have_their_own_classes():
    """As in HTC, where the head for maps knows more classes, and in Panoptic FPN, fewer."""
    for things, in_map in ((3, 90), (90, 3)):
        model = TrainingStep(detector()).model
        model.bbox_head.num_classes = things
        model.semantic_head = _part(num_classes=in_map)
        if things == 90:  # a panoptic detector, which knows all
            model.num_things_classes, model.num_classes = 90, 93
        for sample in synthetic_batch(model, (8, 3, 64, 64))['data_samples']:
            assert sample.gt_instances.labels.max() < things
            assert sample.gt_sem_seg.sem_seg.max() == in_map - 1


def test_the_same_seed_gives_the_same_batch():
    model = TrainingStep(classifier()).model
    a, b, c = (synthetic_batch(model, (2, 3, 8, 8), seed)['inputs'][0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    'shape, message',
    [
        ((2, 3, 0, 64), '2×3×0×64: give four positive numbers'),
        ((2, 3, 64), 'give four positive numbers'),
        ((2, 1, 64, 64), '1 channels, the model.*takes 3'),
    ],
)
def test_shapes_that_cannot_be(shape, message):
    model = TrainingStep(detector()).model
    with pytest.raises(LocalLearningError, match=message):
        synthetic_batch(model, shape)


def test_another_task():
    with pytest.raises(LocalLearningError, match='no synthetic batch for a Linear: .*mmpretrain'):
        synthetic_batch(nn.Linear(1, 1), (2, 3, 64, 64))
