"""mmseg is found where it is installed, and is missed in one line where it isn't."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from mmengine.config.utils import MODULE2PACKAGE

from fba_mm.compat import install_mmseg_name, mmseg_name
from fba_mm.config import load_config

ROOT = Path(__file__).parents[2]
NAME = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'


def name_with(distribution: bool, module: bool) -> str:
    """What MMEngine looks for, with these installed."""
    with mock.patch.dict(MODULE2PACKAGE, mmseg='mmsegmentation'), mock.patch.object(
        mmseg_name, 'is_installed', lambda name: distribution
    ), mock.patch.object(mmseg_name, 'find_spec', lambda name: object() if module else None):
        install_mmseg_name()
        return MODULE2PACKAGE['mmseg']


def test_only_another_distributions_module_goes_by_its_own_name():
    assert name_with(distribution=False, module=True) == 'mmseg'
    assert name_with(distribution=True, module=True) == 'mmsegmentation'
    assert name_with(distribution=False, module=False) == 'mmsegmentation'


def test_nothing_is_installed_on_the_way(tmp_path):
    with mock.patch('mmengine.utils.package_utils.call_command') as command:
        assert load_config(NAME).model.type == 'EncoderDecoder'
        path = tmp_path / 'inherits.py'
        path.write_text(f'_base_ = {NAME!r}\n')
        assert load_config(str(path)).model.type == 'EncoderDecoder'
    command.assert_not_called()


@pytest.mark.slow
def test_without_mmseg():
    """Who doesn't have it notices nothing, and configs that need it say how to get it."""
    code = """
import importlib.util, importlib.metadata, sys
find_spec, version = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name, *a: None if name == 'mmseg' else find_spec(name, *a)
sys.modules['mmseg'] = None
import fba_mm
from fba_mm.config import load_config
from mmengine.registry import MODELS
assert 'LightFCN' in MODELS
for config in ('configs/segmentation/ade20k/fcn_r50_fba.py', 'mmseg::fcn/fcn_unet.py'):
    try:
        load_config(config)
    except fba_mm.LocalLearningError as error:
        assert 'not installed: pip install ' in str(error), error
        assert '\\n' not in str(error)
    else:
        raise AssertionError(config)
"""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
