"""ResNets for small images, mmpretrain's and those of the CIFAR literature."""

import sys
from importlib import util

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalLearningError

from .family_checks import (
    check_checkpoint,
    check_forward,
    check_isolation,
    check_parameters,
    class_batch,
    classifier,
    stages_of,
)

BACKBONES = [
    dict(type='CifarResNet', depth=20),
    dict(type='CifarResNet', depth=8, base_channels=4, out_indices=(0, 2), frozen_stages=1),
    dict(
        type='mmpretrain.ResNet_CIFAR',
        depth=18,
        base_channels=8,
        stem_channels=8,
        out_indices=(1, 3),
    ),
    dict(type='mmpretrain.ResNet_CIFAR', depth=50, base_channels=4, stem_channels=8),
]


@pytest.mark.parametrize('cfg', BACKBONES, ids=str)
def test_segments_one_by_one_are_the_forward(cfg):
    check_forward(cfg, (3, 32, 48))
    check_parameters(cfg)


def test_stages():
    assert (
        stages_of(BACKBONES[0])
        == [(-1, 16, 1)] + [(0, 16, 1)] * 3 + [(1, 32, 2)] * 3 + [(2, 64, 4)] * 3
    )
    assert stages_of(BACKBONES[2])[1::2] == [(0, 8, 1), (1, 16, 2), (2, 32, 4), (3, 64, 8)]


@pytest.mark.slow
@pytest.mark.parametrize(
    'depth, blocks, parameters', [(20, 10, 0.27), (32, 16, 0.46), (110, 55, 1.7)]
)
def test_depths_of_the_literature(depth, blocks, parameters):
    backbone = MODELS.build(dict(type='CifarResNet', depth=depth))
    assert len(stages_of(dict(type='CifarResNet', depth=depth))) == blocks
    # He et al., table 6, whose shortcuts have no parameters.
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    count = sum(p.numel() for p in backbone.parameters()) - shortcuts
    assert count / 1e6 == pytest.approx(parameters, rel=0.03)
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == depth - 1 + 2  # The last of the layers is the head's.


@pytest.mark.parametrize('num_modules', [2, 'blocks'])
def test_isolation(num_modules):
    cfg = dict(type='CifarResNet', depth=8, base_channels=4)
    check_isolation(classifier(cfg, num_modules, 16, neck=True), class_batch(32))
    check_checkpoint(
        classifier(cfg, num_modules, 16, neck=True),
        classifier(cfg, None, 16, neck=True),
        class_batch(32),
    )


@pytest.mark.parametrize('depth', [18, 7, 2, True, '20', None])
def test_depths_that_are_none(depth):
    with pytest.raises(LocalLearningError, match='give 6 n .* 20, 32, 56 or 110'):
        MODELS.build(dict(type='CifarResNet', depth=depth))


def test_without_mmpretrain(monkeypatch):
    monkeypatch.setattr(
        sys.modules['fba_mm.models.cifar_resnet'],
        'find_spec',
        lambda name: None if name == 'mmpretrain' else util.find_spec(name),
    )
    with pytest.raises(LocalLearningError, match='mmpretrain, which is not installed: pip install'):
        MODELS.build(dict(type='CifarResNet', depth=20))
