"""Settings of the type that MMEngine takes."""

import math

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook

from fba_mm import FBAHook, LocalLearningError
from fba_mm.preflight.config_types import check_types

GOOD = dict(
    default_scope='mmengine',
    model=dict(type='RetinaNet', backbone=dict(type='ResNet')),
    work_dir='work',
    train_dataloader=dict(batch_size=2, dataset=dict(type='CocoDataset')),
    test_dataloader=[dict(dataset=dict(type='CocoDataset'))] * 2,
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1e2, dynamic_intervals=[(1, 2)]),
    optim_wrapper=dict(
        type='AmpOptimWrapper',
        loss_scale=512.0,
        accumulative_counts=2,
        clip_grad=dict(max_norm=10),
        optimizer=dict(type='SGD', lr=1, momentum=0.9),
        paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    ),
    param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False),
    val_evaluator=[dict(type='CocoMetric')],
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=['a', 'b'], interval=2)),
    custom_hooks=(dict(type='FBAHook', scope='all'), dict(type=EMAHook), FBAHook()),
    load_from=None,
    resume=False,
    visualizer=dict(type='Visualizer'),
    auto_scale_lr=dict(enable=True, base_batch_size=16),
    randomness=dict(seed=None),
)

# A setting, a value, and what the message says beside both.
WRONG = [
    ('custom_hooks', dict(type='FBAHook'), 'give None or a list'),
    ('custom_hooks', ['FBAHook'], "custom_hooks.0='FBAHook': give a dict"),
    ('optim_wrapper', 'x', 'give None or a dict'),
    ('default_hooks', 'x', 'give None or a dict'),
    ('default_hooks.checkpoint', 2, 'give a dict'),
    ('train_dataloader', 'x', 'give None or a dict'),
    ('test_dataloader', [1], 'test_dataloader.0=1: give None or a dict'),
    ('train_dataloader.dataset', 'x', 'give a dict'),
    ('train_dataloader.dataset.data_root', True, 'give a path'),
    ('load_from', 1, 'give None or a string'),
    ('work_dir', 1, 'give a string'),
    ('model', 1, 'give a dict'),
    ('model.type', 1.5, 'give the name of a class'),
    ('default_scope', '', "give None or the name of a package, such as 'mmdet'"),
    ('model.backbone', 'ResNet', 'give a dict'),
    ('resume', 'x', 'give True or False'),
    ('param_scheduler', 'x', 'give None or a dict or a list'),
    ('randomness', 1, 'give a dict'),
    # Of what MMEngine, torch and this package build.
    ('train_cfg.max_epochs', 2.5, 'give an integer'),
    ('train_cfg.val_interval', 'x', 'give an integer'),
    ('train_cfg.type', 1, 'give the name of a class'),
    ('optim_wrapper.accumulative_counts', 1.5, 'give an integer'),
    ('optim_wrapper.clip_grad', 10, 'give None or a dict'),
    ('optim_wrapper.optimizer', 'SGD', 'give a dict'),
    ('optim_wrapper.optimizer.lr', '0.1', 'give a number'),
    ('optim_wrapper.optimizer.momentum', math.nan, 'give a number'),
    ('optim_wrapper.paramwise_cfg.custom_keys', ['backbone'], 'give a dict'),
    ('default_hooks.checkpoint.interval', 'x', 'give an integer'),
    ('default_hooks.checkpoint.save_best', 1, 'give None or a list or a string'),
    ('custom_hooks.0.scope', 1, 'give a string'),
    ('log_processor', dict(window_size='x'), "log_processor.window_size='x': give an integer"),
    ('param_scheduler.by_epoch', 'x', 'give True or False'),
]


def _set(cfg: Config, place: str, value):
    *keys, last = place.split('.')
    for key in keys:
        cfg = cfg[int(key) if key.isdigit() else key]
    cfg[last] = value


def test_good_settings():
    check_types(Config(GOOD))
    check_types(Config(dict()))


@pytest.mark.parametrize('place, value, words', WRONG, ids=[f'{p}={v}' for p, v, _ in WRONG])
def test_wrong_settings(place, value, words):
    cfg = Config(GOOD)
    _set(cfg, place, value)
    with pytest.raises(LocalLearningError) as info:
        check_types(cfg)
    message = str(info.value)
    assert message.endswith(words if '=' in words else f'{place}={value!r}: {words}')


def test_what_other_projects_build_is_theirs_to_judge():
    """Their annotations are now and then narrower than what their classes take."""
    cfg = Config(GOOD)
    cfg.model.backbone.depth = '50'
    cfg.custom_hooks = [dict(type='mmdet.MeanTeacherHook', momentum='x')]
    check_types(cfg)


@pytest.mark.parametrize('name', ['optim_wraper', 'train_dataloaders', 'default_hook'])
def test_a_misspelled_setting_is_not_passed_over(name):
    with pytest.raises(LocalLearningError, match=f'has {name}, but no .*: check its spelling'):
        check_types(Config({name: dict()}))
    # Names of a config's own are no settings.
    check_types(Config(dict(train_pipeline=[], dataset_type='x', max_epochs=3, data_root='y')))
