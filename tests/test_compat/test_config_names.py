"""Configs of this package inherited by name, from anywhere."""

import pytest
from mmengine.config import Config

from fba_mm import LocalLearningError
from fba_mm.compat import install_config_names
from fba_mm.compat.config_names import CONFIGS
from fba_mm.config import class_of, load_config


def _inheriting(folder, bases, text='') -> Config:
    path = folder / 'mine.py'
    path.write_text(f'_base_ = {bases!r}\n{text}')
    return load_config(str(path))


def test_a_whole_config(tmp_path):
    """In the top folder, which MMEngine's own names don't allow for."""
    cfg = _inheriting(
        tmp_path, 'fba_mm::retinanet_r50_fba.py', 'model = dict(backbone=dict(num_modules=2))'
    )
    by_path = Config.fromfile(CONFIGS / 'retinanet_r50_fba.py')
    assert cfg.model.backbone.num_modules == 2
    cfg.model.backbone.num_modules = 4
    assert cfg.to_dict() == by_path.to_dict()
    assert load_config('fba_mm::retinanet_r50_fba.py').to_dict() == by_path.to_dict()


def test_beside_a_stock_config(tmp_path):
    """With hooks of one's own, and what ``fba_mm::`` brings in the scope of the stock config."""
    cfg = _inheriting(
        tmp_path,
        ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'fba_mm::_base_/fba.py'],
        "custom_hooks = [*_base_.custom_hooks, dict(type='CheckInvalidLossHook')]",
    )
    assert cfg.custom_hooks == [dict(type='FBAHook'), dict(type='CheckInvalidLossHook')]
    assert cfg.model_wrapper_cfg == dict(type='LocalDataParallel')


def test_two_bases_with_hooks_are_told_apart(tmp_path):
    (tmp_path / 'own.py').write_text("custom_hooks = [dict(type='CheckInvalidLossHook')]")
    with pytest.raises(LocalLearningError, match="{'custom_hooks'}.*: inherit one of them"):
        _inheriting(tmp_path, ['./own.py', 'fba_mm::_base_/fba.py'])


def test_types_of_other_packages_are_found(tmp_path):
    cfg = _inheriting(tmp_path, 'fba_mm::demo/yolov1_r34_digits.py')
    assert '_scope_' not in cfg.model
    for part in (cfg.model.data_preprocessor, cfg.model.backbone):
        assert class_of(part, cfg.default_scope).__module__.startswith('mmdet.')


def test_what_is_not_there_and_what_is_no_name_of_ours(tmp_path):
    with pytest.raises(LocalLearningError, match='fba_mm::nothing.py not found .* check its name'):
        load_config('fba_mm::nothing.py')
    with pytest.raises(LocalLearningError, match='nothing.py'):
        _inheriting(tmp_path, 'fba_mm::nothing.py')
    with pytest.raises(LocalLearningError, match='mmengine does not support'):
        _inheriting(tmp_path, 'stranger::nothing/nothing.py')


def test_twice_is_once():
    patched = Config._get_cfg_path
    install_config_names()
    assert Config._get_cfg_path is patched
