"""What is found wrong with a training config before anything is trained or written."""

import copy

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from fba_mm import FBAHook, LocalLearningError, LocalOptimWrapper
from fba_mm.preflight.building import build_model
from fba_mm.preflight.training import check_training, use_atomic_checkpoints
from tests.conftest import retinanet
from tests.test_analysis.small_configs import classifier


def _config(**changes):
    return Config(
        dict(
            default_scope='mmdet',
            model=retinanet(),
            train_dataloader=dict(dataset=dict()),
            train_cfg=dict(max_epochs=1),
            optim_wrapper=dict(type='LocalOptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='FBAHook')],
            **changes,
        )
    )


def _check(cfg):
    return check_training(cfg, build_model(cfg))


def test_good_config():
    wrapper = _check(_config())
    assert isinstance(wrapper, LocalOptimWrapper) and wrapper.optimizer.defaults['lr'] == 0.1


@pytest.mark.parametrize(
    'hook, wrapper',
    [(FBAHook, LocalOptimWrapper), ('mmengine.FBAHook', 'mmengine.LocalOptimWrapper')],
    ids=['classes', 'names with a scope'],
)
def test_types_in_other_forms(hook, wrapper):
    """Python-style configs hold classes, and names may say where they are registered."""
    cfg = _config()
    cfg.custom_hooks[0]['type'] = hook
    cfg.optim_wrapper.type = wrapper
    assert isinstance(_check(cfg), LocalOptimWrapper)
    cfg.custom_hooks = []
    with pytest.raises(LocalLearningError, match='no FBAHook'):
        _check(cfg)


def test_one_module_needs_no_hook():
    cfg = _config()
    cfg.model.backbone.num_modules = 1
    cfg.custom_hooks = None
    assert _check(cfg)


def test_stock_config():
    cfg = _config()
    cfg.model = Config(dict(model=retinanet(num_modules=None))).model
    cfg.custom_hooks, cfg.optim_wrapper.type = [], 'OptimWrapper'
    assert _check(cfg)


def test_optimizers_of_other_packages():
    """What a package registers is known in its scope, and nowhere else."""
    own = dict(type='OptimWrapper', optimizer=dict(type='Lamb', lr=1e-3))
    pytest.importorskip('mmpretrain')
    import mmpretrain.engine  # noqa: F401

    cfg = classifier()
    cfg.train_dataloader, cfg.train_cfg, cfg.optim_wrapper = dict(), dict(), own
    assert type(check_training(cfg, build_model(cfg)).optimizer).__name__ == 'Lamb'
    with pytest.raises(LocalLearningError, match="optimizer.type='Lamb' is not registered"):
        cfg = _config()
        cfg.optim_wrapper = dict(own, type='LocalOptimWrapper')
        _check(cfg)


def test_building_changes_no_config():
    cfg = _config()
    before = copy.deepcopy(cfg)
    _check(cfg)
    assert cfg.to_dict() == before.to_dict()


@pytest.mark.parametrize(
    'hooks, expected',
    [
        (dict(), dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))),
        (
            dict(checkpoint=dict(type='CheckpointHook', interval=5)),
            dict(checkpoint=dict(type='AtomicCheckpointHook', interval=5)),
        ),
        (
            dict(checkpoint=dict(type=CheckpointHook)),
            dict(checkpoint=dict(type='AtomicCheckpointHook')),
        ),
        (dict(checkpoint=dict(type='MyHook')), dict(checkpoint=dict(type='MyHook'))),
        (dict(checkpoint=None), dict(checkpoint=None)),
    ],
)
def test_checkpoints_are_atomic(hooks, expected):
    cfg = Config(dict(default_hooks=hooks))
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks == expected


def test_fba_hook_twice():
    cfg = _config()
    cfg.custom_hooks = [dict(type='FBAHook'), dict(type='mmengine.FBAHook')]
    with pytest.raises(LocalLearningError, match='custom_hooks has 2 FBAHooks: .* leave one'):
        _check(cfg)
