"""mmpretrain's Vision Transformer: tokens flow, and the class token comes out."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import cut, cut_points, trace_footprints, unroll

from ...conftest import build
from ...local_training import Trainer
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

VIT = dict(
    type='mmpretrain.VisionTransformer',
    img_size=32,
    patch_size=8,
    arch=dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=64),
)
LARGER = dict(embed_dims=16, num_layers=8, num_heads=4, feedforward_channels=32)
BACKBONES = [
    (VIT, (3, 32, 32)),
    # Position embeddings for another size.
    (dict(VIT, drop_path_rate=0.3, drop_rate=0.1, interpolate_mode='bilinear'), (3, 48, 48)),
    (
        dict(VIT, out_type='avg_featmap', with_cls_token=False, pre_norm=True, frozen_stages=2),
        (3, 32, 32),
    ),
    (
        dict(VIT, arch=LARGER, img_size=(32, 48), out_type='featmap', out_indices=[1, 3, 5, 7]),
        (3, 32, 48),
    ),
    (
        dict(
            VIT,
            arch=LARGER,
            out_indices=[3],
            final_norm=False,
            qkv_bias=False,
            layer_scale_init_value=0.1,
        ),
        (3, 32, 32),
    ),
    (
        dict(
            VIT, out_type='avg_featmap', final_norm=False, layer_cfgs=dict(ffn_type='swiglu_fused')
        ),
        (3, 32, 32),
    ),
]


@pytest.mark.parametrize('cfg, shape', BACKBONES, ids=str)
def test_segments_one_by_one_are_the_forward(cfg, shape):
    check_forward(cfg, shape)
    check_parameters(cfg)


def test_four_groups_of_layers():
    assert stages_of(VIT) == [(stage, 16, 8) for stage in (-1, 0, 1, 1, 2, 3, 3)]
    assert stages_of(dict(VIT, arch=LARGER)) == [
        (stage, 16, 8) for stage in (-1, 0, 0, 1, 1, 2, 2, 3, 3)
    ]
    short = dict(LARGER, num_layers=2)
    assert stages_of(dict(VIT, arch=short)) == [(-1, 16, 8), (0, 16, 8), (1, 16, 8)]


def test_tokens_as_a_map():
    backbone = built(dict(VIT, img_size=(32, 48)))
    unrolled = unroll(backbone)
    footprints = trace_footprints(
        backbone, unrolled.segments, unrolled.input_shape, unrolled.as_map
    )
    point = cut_points(backbone, unrolled, footprints, cut(footprints, unrolled.segments, 2))[0]
    tokens = torch.rand(2, 1 + 4 * 6, 16)
    found = point.as_map(tokens)
    assert found.shape == (2, 16, 4, 6)
    assert torch.equal(found[:, :, 1, 2], tokens[:, 1 + 6 + 2])
    assert point.as_map(torch.rand(2, 1 + 49, 16)).shape == (2, 16, 7, 7)
    assert [block.path for block in point.later] == [
        f'layers.{i}' for i in range(6 - len(point.later), 6)
    ]


@pytest.mark.parametrize('num_modules', [3, 'blocks'])
@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
def test_isolation(num_modules, out_type):
    cfg = dict(VIT, drop_path_rate=0.2, out_type=out_type)
    check_isolation(classifier(cfg, num_modules, 16), class_batch(32))


def test_isolation_with_maps():
    cfg = dict(VIT, arch=LARGER, out_type='featmap', out_indices=[3, 7])
    check_isolation(classifier(cfg, 3, 16, neck=True), class_batch(32))


@pytest.mark.parametrize('scope', ['past', 'all', 'off'])
def test_mixed_targets_and_every_bank(scope):
    head = dict(
        type='mmpretrain.VisionTransformerClsHead',
        num_classes=5,
        in_channels=16,
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    )
    cfg = classifier(
        VIT, 3, 16, head=head, train_cfg=dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.8)])
    )
    trainer = Trainer(build(cfg), scope=scope)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(class_batch(32))
    losses = trainer.step(class_batch(32))
    assert losses['loss'] > 0 and len(trainer.log) >= 2
    after = trainer.model.state_dict()
    assert not torch.equal(
        before['backbone.backbone.cls_token'], after['backbone.backbone.cls_token']
    )


def test_auxiliary_networks_answer_with_a_class_token():
    local = LocalBackbone(VIT, 3)
    first = local.auxiliary[0]
    assert list(first.outputs) == ['0'] and isinstance(first.outputs['0'].norm, torch.nn.LayerNorm)
    tokens = torch.rand(2, 17, 16)
    own = first.outputs['0']
    torch.testing.assert_close(own(tokens), own.norm(tokens)[:, 0])
    # The module that ends with the last stage but one has a block for that stage alone.
    assert [len(a.blocks) for a in local.auxiliary] == [
        3 - p.stage for p in (a.cut_point for a in local.auxiliary)
    ]


def test_stock_checkpoints():
    check_checkpoint(classifier(VIT, 3, 16), classifier(VIT, None, 16), class_batch(32))


def test_frozen_layers_join_what_is_trained():
    local = LocalBackbone(dict(VIT, frozen_stages=2), 'blocks')
    assert local.module_segments[0] == range(4) and local.num_modules == 4


def test_a_copy_of_the_model_runs_its_own_layers():
    local = LocalBackbone(VIT, 3)
    twin = copy.deepcopy(local)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.rand(2, 3, 32, 32)
    for segment in twin.segments:
        x = segment.run(twin.backbone, x)
    assert not x.any()
    assert any(p.any() for p in local.parameters())


def test_layer_depths_for_learning_rate_decay():
    local, stock = LocalBackbone(VIT, 3), MODELS.build(VIT)
    for name in ('cls_token', 'layers.0.ln1.weight', 'layers.5.ffn.layers.1.bias', 'ln1.weight'):
        assert local.get_layer_depth(
            f'backbone.backbone.{name}', 'backbone.'
        ) == stock.get_layer_depth(f'backbone.{name}', 'backbone.')
    assert (
        local.get_layer_depth('backbone.auxiliary.0.blocks.0.layer.ln1.weight', 'backbone.')
        == stock.get_layer_depth('head.fc.weight', 'backbone.')
        == (7, 8)
    )
    model = build(classifier(VIT, 3, 16))
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='LocalOptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    rates = {g['param_name']: g['lr'] for g in wrapper.optimizer.param_groups}
    assert rates['backbone.backbone.cls_token'] == 0.5**7 and rates['head.fc.weight'] == 1
    with pytest.raises(LocalLearningError, match='leave .*layer_decay_rate out'):
        LocalBackbone(dict(type='mmdet.ResNet', depth=18), 2).get_layer_depth('conv1', '')


@pytest.mark.parametrize(
    'settings, fix',
    [
        (dict(out_type='raw'), "set out_type to 'cls_token'"),
        (dict(out_type='avg_featmap', out_indices=[2, 5]), 'give one index'),
        (dict(out_indices=[1, 5]), r'layers \[1\].* give out_indices of \[0, 2, 3, 5\]'),
    ],
)
def test_refused_settings(settings, fix):
    with pytest.raises(LocalLearningError, match=fix):
        unroll(MODELS.build(dict(VIT, **settings)))


def test_images_whose_shape_tokens_do_not_tell():
    backbone = built(VIT)
    stem = unroll(backbone).segments[0]
    with pytest.raises(LocalLearningError, match='2×8 patches.*set img_size='):
        stem.run(backbone, torch.rand(1, 3, 16, 64))
    assert stem.run(backbone, torch.rand(1, 3, 24, 24)).shape == (1, 10, 16)


def test_a_subclass_with_a_forward_of_its_own():
    distilled = MODELS.build(dict(VIT, type='mmpretrain.DistilledVisionTransformer'))
    with pytest.raises(LocalLearningError, match='DistilledVisionTransformer cannot be cut'):
        unroll(distilled)


def test_reduced_blocks_keep_the_tokens():
    block = unroll(built(VIT)).reduced_block
    assert block(16, 24, 1)(torch.rand(2, 17, 16)).shape == (2, 17, 24)
    assert block(16, 16, 1).layer.ffn.feedforward_channels == 16
    assert block(16, 24, 1).layer.attn.num_heads == 3
    with pytest.raises(LocalLearningError, match='stride=2'):
        block(16, 16, 2)
