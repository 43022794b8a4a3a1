"""MobileNetV2, MobileNetV3 and EfficientNet of mmdet, mmpretrain and mmseg."""

import pytest
from torch import nn

from fba_mm.local.partition import unroll
from fba_mm.local.partition.mobilenet import ReducedInvertedResidual

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

V2 = dict(type='mmdet.MobileNetV2', widen_factor=0.125)
EFFICIENT = dict(type='mmdet.EfficientNet', arch='b0')
BACKBONES = {
    'v2': dict(V2, out_indices=(1, 2, 4, 7), with_cp=True),
    'v2, with layers that rest': dict(V2, out_indices=(2, 4), frozen_stages=1),
    'v2 of mmpretrain': dict(type='mmpretrain.MobileNetV2', widen_factor=0.125),
    'v2 of mmseg': dict(
        type='mmseg.MobileNetV2',
        widen_factor=0.125,
        strides=(1, 2, 2, 1, 1, 1, 1),
        dilations=(1, 1, 1, 2, 2, 4, 4),
        out_indices=(1, 2, 4, 6),
    ),
    'v2 of mmseg, one map': dict(type='mmseg.MobileNetV2', widen_factor=0.125, out_indices=(6,)),
    'v3': dict(type='mmpretrain.MobileNetV3', arch='small_050', out_indices=(1, 3, 8, 12)),
    'v3 of mmseg': dict(type='mmseg.MobileNetV3', arch='small', out_indices=(0, 1, 12)),
    'EfficientNet': dict(EFFICIENT, out_indices=(3, 4, 5), drop_path_rate=0.2),
    'EfficientNet, the stem returned': dict(
        type='mmpretrain.EfficientNet', arch='es', out_indices=(0, 6)
    ),
}
RESTING = {
    'v2, with layers that rest': ('layer6', 'layer7', 'conv2'),
    'EfficientNet': ('layers.6',),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_segments_one_by_one_are_the_forward(name):
    check_forward(BACKBONES[name], (3, 64, 96), RESTING.get(name, ()))
    check_parameters(BACKBONES[name])


def test_segments():
    v2 = unroll(built(BACKBONES['v2'])).segments
    assert [s.name for s in v2][:4] == ['conv1', 'layer1.0', 'layer2.0', 'layer2.1']
    assert len(v2) == 1 + 17 + 1 and v2[-1].name == 'conv2'
    # A stage for each kind of map; what follows the last one that is returned rests with it.
    assert [s.stage for s in v2] == [-1, 0, 1, 1, 2, 2, 2, *[3] * 4, *[4] * 3, *[5] * 3, 6, 7]
    resting = unroll(built(BACKBONES['v2, with layers that rest'])).segments
    assert resting[-1].submodules == ('layer5.2', 'layer6', 'layer7', 'conv2')
    efficient = unroll(built(BACKBONES['EfficientNet'])).segments
    assert efficient[0].name == 'layers.0' and efficient[0].stage == -1
    # mmdet's layers 4 and 5 have blocks of two widths each.
    channels = {stage: width for stage, width, _ in stages_of(BACKBONES['EfficientNet'])}
    assert channels == {-1: 32, 0: 16, 1: 24, 2: 40, 3: 80, 4: 112, 5: 192, 6: 320}
    assert [s.stage for s in efficient if s.level is not None] == [2, 4, 6]
    returned = unroll(built(BACKBONES['EfficientNet, the stem returned'])).segments
    assert (returned[0].stage, returned[0].level, returned[1].stage) == (0, 0, 1)


@pytest.mark.parametrize('name', BACKBONES)
def test_maps_of_a_stage_are_alike(name):
    """A module that ends within a stage can so answer for it."""
    cfg = dict(BACKBONES[name])
    cfg.pop('frozen_stages', None)
    kinds = {}
    for stage, *kind in stages_of(cfg):
        assert kinds.setdefault(stage, kind) == kind


def test_dilated_stages():
    """A stage that is dilated instead of strided is one of its own."""
    cfg = BACKBONES['v2 of mmseg']
    strides = {stage: stride for stage, _, stride in stages_of(cfg)}
    assert strides == {-1: 2, 0: 2, 1: 4, **dict.fromkeys(range(2, 7), 8)}
    dilations = {s.stage: s.dilation for s in unroll(built(cfg)).segments}
    assert dilations == {-1: 1, 0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4}


@pytest.mark.parametrize(
    'name, activation', [('v2', nn.ReLU6), ('v3', nn.Hardswish), ('EfficientNet', nn.SiLU)]
)
def test_reduced_block(name, activation):
    """It has the backbone's norm and activation, and a shortcut where shapes allow it."""
    reduced_block = unroll(built(BACKBONES[name])).reduced_block
    block = reduced_block(8, 16, 2)
    assert isinstance(block, ReducedInvertedResidual) and not block.has_shortcut
    expand, depthwise, project = block.block
    swish = type(expand.activate).__name__ == 'Swish' and activation is nn.SiLU
    assert swish or isinstance(expand.activate, activation)
    assert depthwise.conv.groups == depthwise.conv.in_channels == 16
    assert not project.with_activation
    assert reduced_block(8, 8, 1).has_shortcut
    assert expand.norm.eps == built(BACKBONES[name]).norm_cfg.get('eps', 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, indices, channels',
    [('v2', (4, 7), 1280), ('v3', (3, 12), 288), ('EfficientNet', (4, 6), 1280)],
)
def test_isolation_and_checkpoints(name, indices, channels):
    cfg = dict(BACKBONES[name], out_indices=indices)
    cfg.pop('with_cp', None)  # Gradients of layers that run again aren't the same bit by bit.
    data = class_batch(64)
    check_isolation(classifier(cfg, 4, channels, neck=True), data)
    stock = classifier(cfg, None, channels, neck=True)
    check_checkpoint(classifier(cfg, 2, channels, neck=True), stock, data)
