"""mmpretrain's VGG, with and without norms and classifier."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import unroll
from fba_mm.local.partition.vgg import PooledClassifier, ReducedConvolution

from .family_checks import (
    built,
    check_checkpoint,
    check_forward,
    check_isolation,
    check_parameters,
    class_batch,
    classifier,
    stages_of,
)

VGG = dict(type='mmpretrain.VGG', depth=11)
BACKBONES = [
    (VGG, (3, 64, 96)),
    (dict(VGG, norm_cfg=dict(type='BN'), out_indices=(1, 4), ceil_mode=True), (3, 48, 80)),
    (
        dict(
            VGG,
            depth=16,
            num_stages=3,
            dilations=(1, 1, 2),
            out_indices=(2,),
            with_last_pool=False,
            frozen_stages=1,
        ),
        (3, 32, 32),
    ),
]
SCORES = dict(VGG, num_classes=5, norm_cfg=dict(type='BN'))


@pytest.mark.parametrize('cfg, shape', BACKBONES, ids=str)
def test_segments_one_by_one_are_the_forward(cfg, shape):
    check_forward(cfg, shape)
    check_parameters(cfg)


def test_one_segment_per_convolution():
    assert stages_of(VGG) == [
        (0, 64, 2),
        (1, 128, 4),
        (2, 256, 4),
        (2, 256, 8),
        (3, 512, 8),
        (3, 512, 16),
        (4, 512, 16),
        (4, 512, 32),
    ]
    segments = unroll(built(VGG)).segments
    assert [s.path for s in segments] == [
        None,
        None,
        'features.4',
        None,
        'features.7',
        None,
        'features.10',
        None,
    ]


@pytest.mark.slow
@pytest.mark.parametrize('norm', [None, dict(type='BN')])
def test_isolation(norm):
    cfg = dict(VGG, norm_cfg=norm)
    check_isolation(classifier(cfg, 3, 512, neck=True), class_batch(64, images=2))


def test_stock_checkpoints():
    check_checkpoint(
        classifier(VGG, 3, 512, neck=True), classifier(VGG, None, 512, neck=True), class_batch(32)
    )


@pytest.fixture
def small_classifier(monkeypatch):
    """VGG's classifier has 120 M parameters. Not here."""
    from mmpretrain.models import VGG as stock

    def init(self, *args, num_classes=-1, out_indices=(5,), **kwargs):
        original(self, *args, out_indices=out_indices, **kwargs)
        self.num_classes = num_classes
        self.classifier = torch.nn.Linear(512 * 7 * 7, num_classes)

    original = stock.__init__
    monkeypatch.setattr(stock, '__init__', init)


@pytest.mark.slow
def test_a_classifier_inside_is_the_last_module_s(small_classifier):
    check_forward(SCORES, (3, 224, 224))
    check_parameters(SCORES)
    head = dict(type='mmpretrain.ClsHead', loss=dict(type='mmpretrain.CrossEntropyLoss'))
    model = check_isolation(classifier(SCORES, 2, 512, head=head), class_batch(224, images=1))
    local = model.backbone
    outputs = local.auxiliary[0].outputs
    assert isinstance(outputs['0'], PooledClassifier)
    last = local.segments[-1].parameters(local.backbone)
    assert any(p is local.backbone.classifier.weight for p in last)


def test_two_levels_of_one_segment_are_refused(small_classifier):
    for indices in ((4, 5), (4,)):
        with pytest.raises(LocalLearningError, match='leave index 4 out of out_indices'):
            unroll(MODELS.build(dict(SCORES, out_indices=indices)))
    assert [s.level for s in unroll(MODELS.build(dict(SCORES, out_indices=(1, 5)))).segments] == [
        None,
        0,
        None,
        None,
        None,
        None,
        None,
        1,
    ]


def test_another_packages_vgg():
    from mmcv.cnn import VGG as other

    with pytest.raises(LocalLearningError, match='mmcv.*and not as mmpretrain.*vgg.VGG:'):
        unroll(other(11))


def test_frozen_stages_join_what_is_trained():
    local = LocalBackbone(dict(VGG, frozen_stages=2), 'blocks')
    assert local.module_segments[0] == range(3) and local.num_modules == 6


@pytest.mark.parametrize('ceil_mode, size', [(False, 4), (True, 5)])
def test_reduced_blocks_pool_as_the_backbone_does(ceil_mode, size):
    block = ReducedConvolution(4, 8, 2, dict(type='BN'), ceil_mode)
    assert block(torch.rand(2, 4, 9, 9)).shape == (2, 8, size, size)
    assert [type(m) for m in ReducedConvolution(4, 8)._modules.values()][1] is torch.nn.Identity


# mmdet's, for SSD

SSD = dict(type='mmdet.SSDVGG', depth=11, out_feature_indices=(14, 24))


@pytest.mark.slow
@pytest.mark.parametrize(
    'cfg',
    [SSD, dict(SSD, ceil_mode=False), dict(SSD, depth=16, out_feature_indices=(22, 34))],
    ids=str,
)
def test_segments_of_ssd_vgg_are_the_forward(cfg):
    check_forward(cfg, (3, 75, 64))
    check_parameters(cfg)


def test_one_segment_per_convolution_of_ssd_vgg():
    segments = unroll(built(SSD)).segments
    convolutions = [
        f'features.{i}' for i, m in enumerate(built(SSD).features) if isinstance(m, torch.nn.Conv2d)
    ]
    assert [s.name for s in segments] == convolutions
    # Pooling is with the convolution after it: a returned map is what comes before.
    assert segments[1].submodules[0] == 'features.2'
    assert [(s.stage, s.level) for s in segments][-4:] == [(4, None), (4, None), (5, None), (5, 1)]


def test_one_level_of_ssd_vgg():
    backbone = built(dict(SSD, out_feature_indices=(24,)))
    assert not unroll(backbone).returns_tuple
    wrapped = LocalBackbone(dict(SSD, out_feature_indices=(24,)), 2)
    image = torch.rand(1, 3, 64, 64)
    for each in (wrapped, backbone):
        each.eval()
    assert wrapped(image).shape == backbone(image).shape


def test_maps_of_ssd_vgg_that_no_activation_has_made():
    with pytest.raises(LocalLearningError, match='give indices of activations'):
        unroll(built(dict(SSD, out_feature_indices=(2, 24))))
