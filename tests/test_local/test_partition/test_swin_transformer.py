"""Swin of mmpretrain and mmdet: maps flow between blocks, tokens inside them."""

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

SWIN = dict(
    type='mmpretrain.SwinTransformer',
    img_size=64,
    window_size=4,
    pad_small_map=True,
    arch=dict(embed_dims=8, depths=[2, 1, 2], num_heads=[1, 2, 4]),
    out_indices=(2,),
)
MMDET = dict(
    type='mmdet.SwinTransformer',
    embed_dims=8,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 4),
    window_size=4,
)
BACKBONES = [
    (SWIN, (3, 64, 96)),
    (
        dict(SWIN, out_indices=(0, 2), use_abs_pos_embed=True, drop_rate=0.1, drop_path_rate=0.3),
        (3, 56, 72),
    ),
    (
        dict(
            SWIN,
            frozen_stages=0,
            norm_cfg=None,
            with_cp=True,
            stage_cfgs=dict(block_cfgs=dict(attn_cfgs=dict(qkv_bias=False))),
        ),
        (3, 64, 64),
    ),
    (dict(MMDET, drop_path_rate=0.2), (3, 64, 96)),
    (
        dict(
            MMDET, use_abs_pos_embed=True, pretrain_img_size=64, out_indices=(1, 3), frozen_stages=2
        ),
        (3, 64, 64),
    ),
]


@pytest.mark.parametrize('cfg, shape', BACKBONES, ids=str)
def test_segments_one_by_one_are_the_forward(cfg, shape):
    check_forward(cfg, shape)
    check_parameters(cfg)


@pytest.mark.parametrize('size', [64, 56])
def test_stages(size):
    cfg = dict(SWIN, img_size=size)
    assert stages_of(cfg) == [
        (-1, 8, 4),
        (0, 8, 4),
        (0, 8, 4),
        (1, 16, 8),
        (2, 32, 16),
        (2, 32, 16),
    ]
    assert [s.level for s in unroll(built(cfg)).segments] == [None] * 5 + [0]
    assert {s.path for s in unroll(built(cfg)).segments} == {None}


@pytest.mark.parametrize('num_modules', [2, 'blocks'])
def test_isolation(num_modules):
    cfg = dict(SWIN, drop_path_rate=0.2)
    check_isolation(classifier(cfg, num_modules, 32, neck=True), class_batch(64))


@pytest.mark.parametrize(
    'cfg',
    [MMDET, dict(SWIN, arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1, 2, 4, 4]))],
    ids=str,
)
def test_isolation_in_a_detector(cfg):
    model = retinanet(num_modules=3)
    model['backbone']['backbone'] = dict(cfg, out_indices=(1, 2, 3))
    model['neck'].update(in_channels=[16, 32, 64], start_level=0)
    check_isolation(model, batch())


def test_stock_checkpoints():
    check_checkpoint(
        classifier(SWIN, 3, 32, neck=True), classifier(SWIN, None, 32, neck=True), class_batch(64)
    )


def test_mmdets_position_embeddings_are_for_one_size():
    cfg = dict(MMDET, use_abs_pos_embed=True, pretrain_img_size=64)
    assert [stride for _, _, stride in stages_of(cfg)] == [4, 4, 4, 8, 8, 16, 16, 32, 32]


def test_maps_between_blocks_are_views():
    backbone = built(SWIN)
    segments = unroll(backbone).segments
    x = segments[0].run(backbone, torch.rand(2, 3, 64, 64))
    assert x.shape == (2, 8, 16, 16)
    tokens = x.flatten(2).transpose(1, 2)
    assert tokens.is_contiguous() and tokens.data_ptr() == x.data_ptr()


def test_frozen_stages_join_what_is_trained():
    # Stage 0 with the patch merging after it.
    local = LocalBackbone(dict(SWIN, frozen_stages=0), 'blocks')
    assert local.module_segments == [range(4), range(4, 5), range(5, 6)]
    merging = local.backbone.stages[0].downsample
    assert not any(p.requires_grad for p in merging.parameters())


def test_reduced_blocks_are_of_the_backbones_kind():
    for cfg in (SWIN, MMDET):
        backbone = built(cfg)
        block = unroll(backbone).reduced_block(8, 16, 2)
        assert type(block.block) is type(backbone.stages[0].blocks[0])
        assert block.block.ffn.feedforward_channels == 16
        assert block.block.attn.shift_size == 0
        assert block(torch.rand(2, 8, 9, 11)).shape == (2, 16, 5, 6)
        assert unroll(backbone).reduced_block(8, 8, 1).downsample is None


def test_refusals():
    with pytest.raises(LocalLearningError, match='set out_after_downsample=False'):
        unroll(MODELS.build(dict(SWIN, out_after_downsample=True, out_indices=(0,))))
    second = MODELS.build(dict(type='mmpretrain.SwinTransformerV2', arch='tiny', img_size=256))
    with pytest.raises(LocalLearningError, match='SwinTransformerV2 cannot be cut'):
        unroll(second)
