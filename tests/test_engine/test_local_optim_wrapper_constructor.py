"""Optimizer settings by name: those for the backbone reach the backbone, and nothing else."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from fba_mm import LocalLearningError, localize
from fba_mm.engine.local_optim_wrapper_constructor import check_settings
from fba_mm.localize import localize_optimizer

from ..conftest import build, retinanet

OPTIMIZER = dict(type='AdamW', lr=1.0, weight_decay=0.05)


def config() -> Config:
    model = retinanet(num_modules=None)
    model['backbone'] = dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 3, 1], channels=[8, 16, 32, 64]),
        out_indices=[1, 2, 3],
        gap_before_final_norm=False,
    )
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=OPTIMIZER,
                constructor='mmdet.LearningRateDecayOptimizerConstructor',
                paramwise_cfg=dict(decay_rate=0.5, decay_type='layer_wise', num_layers=4),
            ),
        )
    )


def settings(cfg: Config) -> tuple:
    """Learning rate and weight decay of each parameter, and the wrapper."""
    model = build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    by_parameter = {
        id(p): (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    return {name: by_parameter[id(p)] for name, p in model.named_parameters()}, wrapper


def test_every_parameter_learns_as_in_the_stock_model():
    stock, _ = settings(config())
    local, wrapper = settings(localize(config(), 3, auxiliary='light'))
    assert type(wrapper).__name__ == 'LocalOptimWrapper'
    auxiliary = {name for name in local if name.startswith('backbone.auxiliary.')}
    assert {
        name.replace('backbone.backbone.', 'backbone.'): value
        for name, value in local.items()
        if name not in auxiliary
    } == stock
    assert len({rate for rate, _ in stock.values()}) > 4
    # As the head: without decay by depth.
    assert auxiliary and {local[name][0] for name in auxiliary} == {
        stock['bbox_head.retina_cls.weight'][0]
    }


def with_keys(keys: dict, constructor=None, **others) -> Config:
    cfg = config()
    cfg.model = ConfigDict(retinanet(num_modules=None))
    cfg.optim_wrapper = ConfigDict(
        dict(
            type='OptimWrapper', optimizer=OPTIMIZER, paramwise_cfg=dict(custom_keys=keys, **others)
        )
    )
    if constructor:
        cfg.optim_wrapper.constructor = constructor
    return cfg


KEYS = {
    'backbone': dict(lr_mult=0.1, decay_mult=0.0),
    'backbone.layer1.0': dict(lr_mult=0.0),
    'bn1': dict(decay_mult=0.5),
}


@pytest.mark.parametrize('constructor', [None, 'mmseg.ForceDefaultOptimWrapperConstructor'])
@pytest.mark.parametrize('auxiliary', ['shared', 'own', 'light'])
def test_keys_for_the_backbone_reach_the_backbone_alone(auxiliary, constructor):
    """As DETR's, Swin's and many others' configs have them."""
    if constructor:
        pytest.importorskip('mmseg.engine')
    stock, _ = settings(with_keys(KEYS, constructor, norm_decay_mult=0.25))
    local, _ = settings(
        localize(with_keys(KEYS, constructor, norm_decay_mult=0.25), 3, auxiliary=auxiliary)
    )
    added = {name: value for name, value in local.items() if name.startswith('backbone.auxiliary')}
    assert {
        name.replace('backbone.backbone.', 'backbone.'): value
        for name, value in local.items()
        if name not in added
    } == stock
    assert stock['backbone.conv1.weight'] == (0.1, 0.0) == stock['backbone.layer2.0.bn1.weight']
    # By the rules for everything that is not the backbone, norms and other keys included.
    decay = OPTIMIZER['weight_decay']
    assert added and {rate for rate, _ in added.values()} == {1.0}
    for name, (_, own) in added.items():
        assert own == decay * (0.5 if 'bn1' in name else 0.25 if '.bn' in name else 1.0), name


def test_the_key_for_auxiliary_networks():
    keys = {
        **KEYS,
        'backbone.auxiliary': dict(lr_mult=3.0),
        'backbone.auxiliary.1': dict(lr_mult=4.0),
    }
    local, _ = settings(localize(with_keys(keys), 3, auxiliary='shared'))
    for name, (rate, _) in local.items():
        if name.startswith('backbone.auxiliary.'):
            assert rate == (4.0 if name.startswith('backbone.auxiliary.1') else 3.0)
    assert local['backbone.backbone.conv1.weight'][0] == 0.1
    assert local['bbox_head.retina_cls.weight'][0] == 1.0
    only = localize(with_keys({}), 3, auxiliary='shared', auxiliary_lr_mult=2.0)
    local, _ = settings(only)
    assert {rate for name, (rate, _) in local.items() if 'auxiliary' in name} == {2.0}


def test_layers_that_tell_their_depth():
    """MMPretrain's constructor asks the model for the depth of each parameter, and has keys too."""
    pytest.importorskip('mmpretrain')
    import mmpretrain.engine  # noqa: F401

    cfg = with_keys(
        {'backbone': dict(decay_mult=0.0)},
        'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        layer_decay_rate=0.5,
    )
    cfg.default_scope = 'mmpretrain'
    cfg.model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            img_size=32,
            patch_size=8,
            out_type='cls_token',
            arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
        ),
        head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=3, in_channels=16),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock, _ = settings(cfg)
        local, _ = settings(localize(cfg, 2))
    added = {name: value for name, value in local.items() if name.startswith('backbone.auxiliary')}
    assert {
        name.replace('backbone.backbone.', 'backbone.'): value
        for name, value in local.items()
        if name not in added
    } == stock
    assert added and set(added.values()) == {stock['head.layers.head.weight']} == {(1.0, 0.05)}


def test_other_doors_say_which_constructor():
    """MMEngine's Runner with a config that is written by hand."""
    cfg = localize(with_keys(KEYS), 3, auxiliary='shared')
    del cfg.optim_wrapper.constructor
    model = build(cfg.model)
    with pytest.raises(
        LocalLearningError,
        match="custom_keys: 'backbone' reaches the auxiliary.*"
        "constructor='LocalOptimWrapperConstructor'",
    ):
        check_settings(model.backbone, 'backbone', cfg.optim_wrapper)
    localize_optimizer(cfg)
    assert cfg.optim_wrapper.constructor == 'LocalOptimWrapperConstructor'
    check_settings(model.backbone, 'backbone', cfg.optim_wrapper)
    for keys in (
        {'norm': dict(decay_mult=0.0)},
        {'backbone.auxiliary': dict(lr_mult=2.0)},
        {'backbone.layer1': dict(lr_mult=0.1)},
    ):
        check_settings(model.backbone, 'backbone', with_keys(keys).optim_wrapper)
    assert localize_optimizer(with_keys(KEYS)) is None


def test_what_is_refused():
    cfg = localize(config(), 3).optim_wrapper
    with pytest.raises(LocalLearningError, match='models with a LocalBackbone: give the stock'):
        build_optim_wrapper(build(config().model), cfg)
