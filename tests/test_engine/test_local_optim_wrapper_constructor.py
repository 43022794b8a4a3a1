"""Learning rates by layer, as MMDetection's constructor for ConvNeXt gives them."""
import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from fba_mm import LocalLearningError, localize

from ..conftest import build, retinanet

OPTIMIZER = dict(type='AdamW', lr=1., weight_decay=.05)


def config() -> Config:
    model = retinanet(num_modules=None)
    model['backbone'] = dict(
        type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 3, 1], channels=[8, 16, 32, 64]),
        out_indices=[1, 2, 3], gap_before_final_norm=False)
    return Config(dict(
        default_scope='mmdet', model=model, optim_wrapper=dict(
            type='OptimWrapper', optimizer=OPTIMIZER,
            constructor='mmdet.LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=.5, decay_type='layer_wise', num_layers=4))))


def settings(cfg: Config) -> tuple:
    """Learning rate and weight decay of each parameter, and the wrapper."""
    model = build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    by_parameter = {id(p): (group['lr'], group['weight_decay'])
                    for group in wrapper.optimizer.param_groups for p in group['params']}
    return {name: by_parameter[id(p)] for name, p in model.named_parameters()}, wrapper


def test_every_parameter_learns_as_in_the_stock_model():
    stock, _ = settings(config())
    local, wrapper = settings(localize(config(), 3, auxiliary='light'))
    assert type(wrapper).__name__ == 'LocalOptimWrapper'
    auxiliary = {name for name in local if name.startswith('backbone.auxiliary.')}
    assert {name.replace('backbone.backbone.', 'backbone.'): value
            for name, value in local.items() if name not in auxiliary} == stock
    assert len({rate for rate, _ in stock.values()}) > 4
    # As the head: without decay by depth.
    assert auxiliary and {local[name][0] for name in auxiliary} == {
        stock['bbox_head.retina_cls.weight'][0]}


def test_what_is_refused():
    cfg = localize(config(), 3).optim_wrapper
    with pytest.raises(LocalLearningError, match='models with a LocalBackbone: give the stock'):
        build_optim_wrapper(build(config().model), cfg)
    cfg.paramwise_cfg.pop('stock_constructor')
    with pytest.raises(LocalLearningError, match='name it in .*paramwise_cfg.stock_constructor'):
        build_optim_wrapper(build(config().model), cfg)
