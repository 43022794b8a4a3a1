"""The model wrapper of several processes."""

import pytest
from mmengine.config import Config

from fba_mm import LocalLearningError
from fba_mm.preflight.model_wrapper import choose_model_wrapper


def distributed(local=True, **settings):
    hooks = [dict(type='FBAHook')] if local else []
    return Config(dict(dict(launcher='pytorch', custom_hooks=hooks), **settings))


@pytest.mark.parametrize(
    'local, expected', [(True, 'LocalDataParallel'), (False, 'MMDistributedDataParallel')]
)
def test_the_model_wrapper_fits_the_training(local, expected):
    cfg = distributed(local, find_unused_parameters=True)
    choose_model_wrapper(cfg)
    assert cfg.model_wrapper_cfg.type == expected
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    # MMEngine would give it a GPU, and there is none.
    assert ('device_ids' in cfg.model_wrapper_cfg) == (not local)


def test_one_process_has_no_model_wrapper():
    cfg = Config(dict(launcher='none', custom_hooks=[dict(type='FBAHook')]))
    choose_model_wrapper(cfg)
    assert 'model_wrapper_cfg' not in cfg


def test_the_configs_own_model_wrapper():
    own = dict(type='LocalDataParallel', bucket_cap_mb=5)
    cfg = distributed(model_wrapper_cfg=own)
    choose_model_wrapper(cfg)
    assert cfg.model_wrapper_cfg == own
    # Without a type, it is MMEngine's.
    cfg = distributed(model_wrapper_cfg=dict(broadcast_buffers=False))
    with pytest.raises(LocalLearningError, match='MMDistributedDataParallel would not reduce'):
        choose_model_wrapper(cfg)
    choose_model_wrapper(cfg, training=False)
    with pytest.raises(LocalLearningError, match="'LocalParallel' is not registered"):
        choose_model_wrapper(distributed(model_wrapper_cfg=dict(type='LocalParallel')))
