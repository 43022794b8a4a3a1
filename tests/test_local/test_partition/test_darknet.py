"""mmdet's Darknet, CSPDarknet and CSPNeXt."""

import pytest
from torch import nn

from fba_mm.local.partition import unroll
from fba_mm.local.partition.darknet import ReducedConvolutions

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

CSP = dict(deepen_factor=0.34, widen_factor=0.125, out_indices=(2, 3, 4))
SMALL = ((8, 16, 1, True, False), (16, 32, 2, True, False), (32, 64, 1, False, True))
BACKBONES = {
    'Darknet': dict(type='mmdet.Darknet', depth=53, out_indices=(3, 4, 5)),
    'CSPDarknet': dict(type='mmdet.CSPDarknet', **CSP),
    'P6, depthwise': dict(
        type='mmdet.CSPDarknet',
        arch='P6',
        use_depthwise=True,
        deepen_factor=0.34,
        widen_factor=0.125,
        out_indices=(0, 4, 5),
        frozen_stages=0,
    ),
    'no norm': dict(
        type='mmdet.CSPDarknet',
        arch_ovewrite=SMALL,
        norm_cfg=None,
        out_indices=(1, 3),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.2),
    ),
    'CSPNeXt': dict(type='mmdet.CSPNeXt', **CSP),
}


@pytest.mark.slow
@pytest.mark.parametrize('cfg', BACKBONES.values(), ids=BACKBONES)
def test_segments_one_by_one_are_the_forward(cfg):
    check_forward(cfg, (3, 64, 96))
    check_parameters(cfg)


def test_segments():
    assert [s.name for s in unroll(built(BACKBONES['CSPDarknet'])).segments] == [
        'stem',
        'stage1.0',
        'stage2.0',
        'stage3.0',
        'stage4.0',
        'stage4.2',
    ]
    assert stages_of(BACKBONES['CSPDarknet']) == [
        (-1, 8, 2),
        (0, 16, 4),
        (1, 32, 8),
        (2, 64, 16),
        (3, 128, 32),
        (3, 128, 32),
    ]
    # One per residual block of 1, 2, 8, 8 and 4; a stage's convolution is with its first.
    darknet = unroll(built(BACKBONES['Darknet'])).segments
    assert len(darknet) == 1 + 1 + 2 + 8 + 8 + 4
    assert darknet[1].submodules == ('conv_res_block1.conv', 'conv_res_block1.res0')
    # A stem whose map is returned is a stage, for others to stand in for.
    assert stages_of(dict(BACKBONES['P6, depthwise'], frozen_stages=-1))[0][0] == 0


@pytest.mark.parametrize(
    'name, activation',
    [
        ('CSPDarknet', 'Swish'),
        ('CSPNeXt', 'SiLU'),
        ('Darknet', 'LeakyReLU'),
        ('no norm', 'LeakyReLU'),
    ],
)
def test_reduced_block(name, activation):
    """It has the backbone's norm and activation."""
    block = unroll(built(BACKBONES[name])).reduced_block(8, 16, 2)
    assert isinstance(block, ReducedConvolutions)
    assert type(block.conv.activate).__name__ in (activation, 'SiLU')
    assert any(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == (name != 'no norm')
    if name == 'no norm':
        assert block.conv.activate.negative_slope == 0.2


@pytest.mark.slow
@pytest.mark.parametrize('name', ['CSPDarknet', 'CSPNeXt'])
def test_isolation_and_checkpoints(name):
    cfg = dict(BACKBONES[name], out_indices=(2, 4))
    data = class_batch(64)
    check_isolation(classifier(cfg, 'blocks', 128, neck=True), data)
    stock = classifier(cfg, None, 128, neck=True)
    check_checkpoint(classifier(cfg, 4, 128, neck=True), stock, data)
