"""What the tools share: arguments, the config they make, and how they end."""

import argparse
import importlib
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from fba_mm import LocalLearningError, command_line


def _parse(*args):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    command_line.add_common_arguments(parser)
    return parser.parse_args(args)


@pytest.fixture()
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    (tmp_path / 'my.model.py').write_text(
        'a = dict(b=[1, 2], c=dict(d=3))\nname = "x"\nempty = None\n'
    )
    return 'my.model.py'


def test_user_error_is_one_line(capsys):

    def main():
        raise LocalLearningError('x is wrong: set y')

    with pytest.raises(SystemExit) as info:
        command_line.run(main)
    assert info.value.code == 1
    assert capsys.readouterr() == ('', 'error: x is wrong: set y\n')


def test_setuptools_without_what_the_original_mmengine_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)

    def main(name):
        importlib.import_module(name)

    with pytest.raises(SystemExit) as info:
        command_line.run(partial(main, 'pkg_resources'))
    assert info.value.code == 1
    out, err = capsys.readouterr()
    assert not out and err.count('\n') == 1 and "pip install 'setuptools<81'" in err
    with pytest.raises(ModuleNotFoundError):
        command_line.run(partial(main, 'no_such_package'))


def test_interrupt_is_no_traceback(capsys):

    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as info:
        command_line.run(main)
    assert info.value.code == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_defect_keeps_its_traceback():

    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line.run(main)


def test_overrides(config):
    cfg = command_line.config_from(
        _parse(
            config, '--cfg-options', 'a.b=[3,4,5]', 'a.c.d=7', 'name=y', 'new.key=1.5', 'flag=True'
        )
    )
    assert cfg.a.b == [3, 4, 5] and cfg.a.c.d == 7 and cfg.name == 'y'
    assert cfg.new.key == 1.5 and cfg.flag is True


def test_overrides_by_dicts(config):
    """As configs write them, with quotes and commas; other values stay as MMEngine reads them."""
    cfg = command_line.config_from(
        _parse(
            config,
            '--cfg-options',
            "custom_hooks=[dict(type='FBAHook', scope='all')]",
            "a.c=dict(_delete_=True, x=-1, y=(1.5, None), z={'k': [True]})",
            'b=[p,q]',
            'tmpl=epoch_{}.pth',
            'e={}',
        )
    )
    assert cfg.custom_hooks == [dict(type='FBAHook', scope='all')]
    assert cfg.a.c == dict(x=-1, y=(1.5, None), z=dict(k=[True]))
    assert cfg.b == ['p', 'q'] and cfg.tmpl == 'epoch_{}.pth' and cfg.e == {}


@pytest.mark.parametrize(
    'option',
    [
        *('a', 'a.b=[1,(2', 'a.b.9=1', 'a.c.d.e=1', 'name.x.y=1', 'a.c=dict(x=open)', 'a.c={1:x}'),
        *("a.c=dict(x='1'", 'a.c=dict(1)', "a.c=dict(x=f('dict()'))", 'a.c=f(x=1,y=2)'),
    ],
)
def test_overrides_that_do_not_fit(option, config):
    with pytest.raises(LocalLearningError, match='--cfg-options') as info:
        command_line.config_from(_parse(config, '--cfg-options', option))
    assert '\n' not in str(info.value)


def test_work_dir_by_name(config):
    assert command_line.config_from(_parse(config)).work_dir == './work_dirs/my.model'
    assert command_line.config_from(_parse(config, '--work-dir', 'a/b')).work_dir == 'a/b'
    assert not os.path.exists('work_dirs') and not os.path.exists('a')


@pytest.mark.parametrize(
    'name, options, work_dir',
    [
        # One name stands for several data sets, and one config for several trainings.
        ('configs/classification/svhn/resnet32_fba.py', [], 'classification/svhn/resnet32_fba'),
        ('configs/retinanet_r50_fba.py', [], 'retinanet_r50_fba'),
        (
            'configs/demo/retinanet_r34_digits.py',
            ['--local', '4'],
            'demo/retinanet_r34_digits_local4',
        ),
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            ['--local', 'blocks', '--auxiliary', 'light'],
            'retinanet_r50_fpn_1x_coco_localblocks_light',
        ),
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            ['--local', 'stem,layer1.2'],
            'retinanet_r50_fpn_1x_coco_localstem-layer1.2',
        ),
    ],
)
def test_trainings_of_different_kinds_have_folders_of_their_own(
    name, options, work_dir, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    command_line.add_local(parser, 'it')
    command_line.add_common_arguments(parser)
    config = name if '::' in name else str(Path(__file__).parents[1] / name)
    cfg = command_line.config_from(parser.parse_args([config, *options]))
    assert cfg.work_dir == f'./work_dirs/{work_dir}'


@pytest.mark.parametrize(
    'value, expected',
    [
        ('4', 4),
        ('blocks', 'blocks'),
        ('layer1.2,layer3.0', ['layer1.2', 'layer3.0']),
        ('4,4,4,4', [4, 4, 4, 4]),
    ],
)
def test_module_counts_and_lists(value, expected):
    assert command_line.module_count(value) == expected


@pytest.mark.parametrize('work_dir', ['file', 'file/below/it', 'dangling'])
def test_work_dir_that_cannot_be(work_dir, config):
    open('file', 'w').close()
    os.symlink('nowhere', 'dangling')
    with pytest.raises(LocalLearningError, match='is a file: choose another --work-dir'):
        command_line.config_from(_parse(config, '--work-dir', work_dir))


@pytest.mark.parametrize('argument', ['--local_rank=3', '--local-rank=3'])
def test_local_rank_of_older_launchers(argument, config, monkeypatch):
    monkeypatch.delenv('LOCAL_RANK')
    assert command_line.config_from(_parse(config, argument)).launcher == 'none'
    assert os.environ['LOCAL_RANK'] == '3'


def test_runner_of_the_config_s_own_type(monkeypatch):
    from mmengine.registry import RUNNERS

    @RUNNERS.register_module(name='OwnRunner')
    class OwnRunner:
        def __init__(self, cfg):
            self.cfg = cfg

        @classmethod
        def from_cfg(cls, cfg):
            return cls(cfg)

    try:
        assert isinstance(
            command_line.build_runner(Config(dict(runner_type='OwnRunner'))), OwnRunner
        )
    finally:
        RUNNERS.module_dict.pop('OwnRunner')


def test_options_for_a_wrapped_backbone(tmp_path):
    """What is meant for the backbone is not handed to LocalBackbone, which doesn't know it."""
    model = dict(backbone=dict(type='LocalBackbone', backbone=dict(type='ResNet', depth=50)))
    cfg = Config(dict(model=model))
    with pytest.raises(
        LocalLearningError,
        match=(
            'model.backbone.depth: model.backbone is a LocalBackbone, which has no depth: give '
            'model.backbone.backbone.depth for'
        ),
    ):
        command_line.apply_cfg_options(cfg, {'model.backbone.depth': 18})
    with pytest.raises(LocalLearningError, match='give model.backbone.backbone.norm_cfg.type for'):
        command_line.apply_cfg_options(cfg, {'model.backbone.norm_cfg.type': 'GN'})
    command_line.apply_cfg_options(
        cfg, {'model.backbone.num_modules': 2, 'model.backbone.backbone.depth': 18}
    )
    assert cfg.model.backbone.num_modules == 2 and cfg.model.backbone.backbone.depth == 18
    stock = Config(dict(model=dict(backbone=dict(type='ResNet'))))
    command_line.apply_cfg_options(stock, {'model.backbone.depth': 18})
    assert stock.model.backbone.depth == 18
