"""Settings of the optimizer that reach no parameter, or are no numbers."""

import logging
import math

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from fba_mm import FBAHook, LocalLearningError
from fba_mm.engine.optimizer_settings import check_keys, check_param_groups

from ..conftest import build, retinanet
from .test_fba_hook import runner_of


@pytest.fixture(scope='module')
def model():
    return build(retinanet(num_modules=2))


@pytest.mark.parametrize('lr', [-1.0, math.nan, math.inf])
@pytest.mark.parametrize('name', ['lr', 'decay'])
def test_multipliers_that_are_none(lr, name, model):
    wrapper = build_optim_wrapper(
        model,
        Config(
            dict(
                optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
                paramwise_cfg=dict(custom_keys={'bbox_head': {f'{name}_mult': lr}}),
            )
        )._cfg_dict,
    )
    setting = 'lr' if name == 'lr' else 'weight_decay'
    with pytest.raises(
        LocalLearningError, match=rf'{setting} of bbox_head\.\S+={lr * 0.1}: give a'
    ):
        check_param_groups(wrapper, model)


@pytest.mark.parametrize(
    'key, near',
    [
        ('backbone.auxilary', 'backbone.auxiliary'),
        ('backbone.layer5', 'backbone.layer[0-9]'),
        ('backbone.backbone.layr1', 'backbone.backbone.layer1'),
    ],
)
def test_keys_that_match_nothing(key, near, model):
    with pytest.raises(LocalLearningError, match=f"'{key}' matches no .*: is '{near}' meant"):
        check_keys(dict(paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.1)})), model)


@pytest.mark.parametrize(
    'key',
    ['backbone', 'backbone.auxiliary', 'backbone.layer1', 'bias', 'backbone.backbone.layer1.0'],
)
def test_keys_that_match(key, model):
    check_keys(dict(paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.1)})), model)
    check_keys(dict(), model)


def test_keys_for_other_networks_are_told(model, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        check_keys(dict(paramwise_cfg=dict(custom_keys=dict(absolute_pos_embed=dict()))), model)
    logger.removeHandler(caplog.handler)
    assert "'absolute_pos_embed' matches no parameter" in caplog.text


def test_other_tools_find_them_too(model):
    """The hook looks where ``tools/train.py`` has not."""
    settings = dict(paramwise_cfg=dict(custom_keys={'backbone.auxilary': dict(lr_mult=2.0)}))
    cfg = dict(optim_wrapper=settings)
    with pytest.raises(LocalLearningError, match="is 'backbone.auxiliary' meant"):
        FBAHook().before_run(runner_of(model, cfg=cfg))
    with pytest.raises(LocalLearningError, match='data_root: /nowhere/ does not exist'):
        FBAHook().before_run(
            runner_of(
                model,
                cfg=Config(
                    dict(
                        default_scope='mmdet',
                        train_dataloader=dict(
                            dataset=dict(type='CocoDataset', data_root='/nowhere/')
                        ),
                    )
                ),
            )
        )
    FBAHook().before_run(runner_of(model, cfg=cfg, is_checked=True))
