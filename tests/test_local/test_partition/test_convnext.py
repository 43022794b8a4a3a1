"""mmpretrain's ConvNeXt: norms of the levels aside from what flows on."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import unroll

from ...conftest import batch, retinanet
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

TINY = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 2, 2, 1], channels=[8, 16, 24, 32]),
    # Not 1e-6, with which blocks are identities: nothing that goes wrong in one could be seen.
    layer_scale_init_value=0.5,
)
MAPS = dict(TINY, out_indices=[1, 2, 3], gap_before_final_norm=False)
BACKBONES = [
    dict(TINY, drop_path_rate=0.3),
    dict(TINY, out_indices=[1, 3], linear_pw_conv=False),
    dict(MAPS, use_grn=True, layer_scale_init_value=0.0, frozen_stages=1),
    dict(MAPS, out_indices=[0, 2], stem_patch_size=2, with_cp=True),
]


@pytest.mark.parametrize('cfg', BACKBONES, ids=str)
def test_segments_one_by_one_are_the_forward(cfg):
    check_forward(cfg, (3, 64, 96))
    check_parameters(cfg)


def test_stages():
    assert stages_of(TINY) == [
        (-1, 8, 4),
        (0, 8, 4),
        (1, 16, 8),
        (1, 16, 8),
        (2, 24, 16),
        (2, 24, 16),
        (3, 32, 32),
    ]
    assert [s.level for s in unroll(built(MAPS)).segments] == [None, None, None, 0, None, 1, 2]


@pytest.mark.parametrize('num_modules', [2, 'blocks'])
def test_isolation(num_modules):
    cfg = dict(TINY, drop_path_rate=0.2)
    check_isolation(classifier(cfg, num_modules, 32), class_batch(64))


def test_isolation_in_a_detector():
    cfg = retinanet(num_modules=3)
    cfg['backbone']['backbone'] = MAPS
    cfg['neck'].update(in_channels=[16, 24, 32], start_level=0)
    check_isolation(cfg, batch())


@pytest.mark.parametrize('scope', ['past', 'all', 'off'])
def test_pooled_levels_with_and_without_the_bank(scope):
    from ...conftest import build
    from ...local_training import Trainer

    model = build(classifier(dict(TINY, out_indices=[1, 3]), 'stages', 32))
    trainer = Trainer(model, scope=scope)
    seen = []
    auxiliary = model.backbone.auxiliary[2]
    features = auxiliary.features

    def record(*args, **kwargs):
        seen.append(features(*args, **kwargs))
        return seen[-1]

    auxiliary.features = record
    trainer.step(class_batch(64))
    assert [f.shape for f in seen[0]] == [(4, 16), (4, 32)]
    assert (scope == 'off') == bool((seen[0][0] == 0).all())


def test_stock_checkpoints():
    check_checkpoint(classifier(TINY, 3, 32), classifier(TINY, None, 32), class_batch(64))


def test_frozen_stages_join_what_is_trained():
    local = LocalBackbone(dict(TINY, frozen_stages=2), 'blocks')
    assert local.module_segments == [range(5), range(5, 6), range(6, 7)]


def test_reduced_blocks_are_of_the_backbones_kind():
    backbone = built(dict(TINY, use_grn=True, act_cfg=dict(type='ReLU')))
    block = unroll(backbone).reduced_block(8, 16, 2)
    own = backbone.stages[-1][-1]
    assert type(block.block) is type(own) and block.block.grn is not None
    assert isinstance(block.block.act, torch.nn.ReLU) and block.block.gamma is None
    assert block.block.pointwise_conv1.out_features == 16
    assert block(torch.rand(2, 8, 9, 9)).shape == (2, 16, 4, 4)
    assert isinstance(unroll(backbone).reduced_block(8, 8, 1).downsample, torch.nn.Identity)


def test_refusals():
    backbone = MODELS.build(TINY)
    backbone.stages[-1][-1].norm = torch.nn.BatchNorm2d(32)
    with pytest.raises(LocalLearningError, match="BatchNorm2d.*set norm_cfg=dict.type='LN2d'"):
        unroll(backbone)
