"""mmagic beside newer versions of mmcv and numpy than it was made for."""

import subprocess
import sys
from pathlib import Path

import pytest

import fba_mm  # noqa: F401
from fba_mm.compat import install_mmagic_import
from fba_mm.compat.mmagic_import import _MMagicFinder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_python(script):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_import_and_use_in_a_fresh_process():
    result = run_python("""
import fba_mm, mmcv, numpy, sys, torch
assert not any(name.startswith('mmagic') for name in sys.modules)
version, names = mmcv.__version__, set(dir(numpy))
import mmagic
from mmagic.models import EDSRNet
from mmagic.utils import trans_utils
assert mmcv.__version__ == version and set(dir(numpy)) - {'bool8'} == names - {'bool8'}
assert ('bool8' in dir(numpy)) == ('bool8' in names)
net = EDSRNet(3, 3, mid_channels=8, num_blocks=2, upscale_factor=2)
image = net(torch.rand(1, 3, 8, 8))
image.sum().backward()
print(tuple(image.shape))
""")
    assert result.returncode == 0, result.stdout
    assert result.stdout.strip().endswith('(1, 3, 16, 16)')


def test_mmagic_s_own_refusals_stay():
    """Of an mmcv that is too old, say."""
    result = run_python("""
import fba_mm, mmcv
mmcv.__version__ = '1.7.0'
import mmagic
""")
    assert result.returncode and 'mmcv==1.7.0 is used but incompatible' in result.stdout


def test_other_imports_are_left_alone():
    finder = _MMagicFinder()
    for name in ('mmcv', 'mmagic.models', 'numpy', 'mmagic_else'):
        assert finder.find_spec(name) is None


def test_installed_once():
    before = list(sys.meta_path)
    install_mmagic_import()
    assert sys.meta_path == before
    assert sum(isinstance(finder, _MMagicFinder) for finder in before) == 1
