"""What is found wrong with a config before anything is trained or written."""
import copy
import json

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from fba_mm import FBAHook, LocalLearningError, LocalOptimWrapper
from fba_mm.engine.preflight import (build_model, check_data, check_training,
                                     choose_model_wrapper, readable_errors,
                                     use_atomic_checkpoints)
from tests.conftest import retinanet
from tests.test_analysis.small_configs import classifier


def _config(**changes):
    return Config(dict(
        default_scope='mmdet',
        model=retinanet(),
        train_dataloader=dict(dataset=dict(type='CocoDataset')),
        train_cfg=dict(max_epochs=1),
        optim_wrapper=dict(type='LocalOptimWrapper', optimizer=dict(type='SGD', lr=.1)),
        custom_hooks=[dict(type='FBAHook')], **changes))


def _check(cfg):
    return check_training(cfg, build_model(cfg))


def test_good_config():
    wrapper = _check(_config())
    assert isinstance(wrapper, LocalOptimWrapper) and wrapper.optimizer.defaults['lr'] == .1


@pytest.mark.parametrize('hook, wrapper', [
    (FBAHook, LocalOptimWrapper), ('mmengine.FBAHook', 'mmengine.LocalOptimWrapper')
], ids=['classes', 'names with a scope'])
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


def test_the_data_preprocessor_may_stand_beside_the_model():
    assert build_model(classifier()).data_preprocessor.num_classes == 5


def test_building_changes_no_config():
    cfg = _config()
    before = copy.deepcopy(cfg)
    _check(cfg)
    assert cfg.to_dict() == before.to_dict()


@pytest.mark.parametrize('raised, said', [
    (KeyError('Nothing is not in the mmdet::model registry. Please check whether ...'),
     r"nothing is registered as 'Nothing' \(mmdet::model registry\), check its spelling"),
    (KeyError('a'), r'KeyError: a\): check the config$'),
    (ValueError('one\n  two'), r'ValueError: one two\): check the config$'),
    (AssertionError(), r'AssertionError: no reason given\): check the config$'),
    (ValueError('x' * 1000), r'x{300}\): check the config$'),
])
def test_readable_errors(raised, said):
    with pytest.raises(LocalLearningError, match=said) as info:
        with readable_errors('it failed'):
            raise raised
    assert info.value.__cause__ is raised and str(info.value).startswith('it failed')


def test_own_errors_pass():
    error = LocalLearningError('as it is')
    with pytest.raises(LocalLearningError) as info:
        with readable_errors('it failed'):
            raise error
    assert info.value is error


@pytest.fixture()
def coco(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text(json.dumps(dict(images=[])))
    return dict(data_root=f'{tmp_path}/', ann_file='a.json', data_prefix=dict(img='images/'))


def _data(dataset):
    return Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None))


@pytest.mark.parametrize('around', [
    lambda d: d,
    lambda d: dict(type='RepeatDataset', dataset=d),
    lambda d: dict(type='ConcatDataset', datasets=[d, d]),
    lambda d: dict(type='ClassBalancedDataset', dataset=dict(type='RepeatDataset', dataset=d)),
])
@pytest.mark.parametrize('key, value, words', [
    ('data_root', '/nowhere/', 'data_root: /nowhere/ does not exist'),
    ('ann_file', 'b.json', 'ann_file: .*b.json does not exist'),
    ('data_prefix', dict(img='pictures/'), 'data_prefix: .*pictures/ does not exist'),
    ('data_prefix', dict(img='images/', seg='seg/'), 'data_prefix: .*seg/ does not exist'),
])
def test_data_that_is_missing(around, key, value, words, coco):
    check_data(_data(around(coco)), 'train', 'val', 'test')
    with pytest.raises(LocalLearningError, match=words):
        check_data(_data(around(dict(coco, **{key: value}))), 'train', 'val', 'test')


@pytest.mark.parametrize('elsewhere', [
    dict(backend_args=dict(backend='petrel')), dict(data_root='s3://bucket/'),
])
def test_data_that_is_not_on_this_machine(elsewhere, coco):
    check_data(_data(dict(coco, ann_file='b.json', **elsewhere)), 'train')


@pytest.mark.parametrize('content', ['', ' ', '{', '{"images": [{"id": 1},', '[1, 2', '}{'])
def test_annotations_that_are_cut_off(content, coco, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(LocalLearningError, match='a.json is empty or cut off'):
        check_data(_data(coco), 'train')


@pytest.mark.parametrize('content', ['{"a": 1}\n', '  [1]  ', '{}'])
def test_annotations_that_are_whole(content, coco, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    check_data(_data(coco), 'train')


# Several processes


def distributed(local=True, **settings):
    hooks = [dict(type='FBAHook')] if local else []
    return Config(dict(dict(launcher='pytorch', custom_hooks=hooks), **settings))


@pytest.mark.parametrize('local, expected', [(True, 'LocalDataParallel'),
                                             (False, 'MMDistributedDataParallel')])
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


@pytest.mark.parametrize('hooks, expected', [
    (dict(), dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))),
    (dict(checkpoint=dict(type='CheckpointHook', interval=5)),
     dict(checkpoint=dict(type='AtomicCheckpointHook', interval=5))),
    (dict(checkpoint=dict(type=CheckpointHook)),
     dict(checkpoint=dict(type='AtomicCheckpointHook'))),
    (dict(checkpoint=dict(type='MyHook')), dict(checkpoint=dict(type='MyHook'))),
    (dict(checkpoint=None), dict(checkpoint=None)),
])
def test_checkpoints_are_atomic(hooks, expected):
    cfg = Config(dict(default_hooks=hooks))
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks == expected
