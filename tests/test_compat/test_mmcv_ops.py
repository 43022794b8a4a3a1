"""When the stand-in for mmcv._ext takes its place, and what else it answers."""

import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import mmcv
import pytest

from fba_mm.compat import MissingOpError, install_mmcv_ops, nms_ops
from fba_mm.compat.mmcv_ops import without_compiled_ops
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).parents[2]


def run_python(script):
    result = subprocess.run(
        [sys.executable, '-c', script],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture
def not_installed(monkeypatch):
    """As if nothing had imported or replaced mmcv._ext yet; puts all back afterwards."""
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(mmcv, '_ext', None, raising=False)
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    # Nothing here was imported too early, and looking for it takes a while with mmdet loaded.
    monkeypatch.setattr('fba_mm.compat.mmcv_ops._replace_fallbacks', lambda: None)


class FakeExtension(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A compiled mmcv._ext that loads, or raises ``error`` while it does."""

    def __init__(self, error=None):
        self.error = error

    def find_spec(self, fullname, path=None, target=None):
        if fullname == 'mmcv._ext':
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        if self.error is not None:
            raise self.error
        module.nms = 'the compiled one'


@pytest.fixture
def stand_in(not_installed):
    sys.meta_path.insert(0, FakeExtension(ModuleNotFoundError('absent', name='mmcv._ext')))
    assert install_mmcv_ops() == 'stand-in'
    return sys.modules['mmcv._ext']


def test_absent_extension_is_replaced_without_a_warning(not_installed):
    sys.meta_path.insert(0, FakeExtension(ModuleNotFoundError('absent', name='mmcv._ext')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert install_mmcv_ops() == 'stand-in'
    assert sys.modules['mmcv._ext'].nms is nms_ops.nms
    assert mmcv._ext is sys.modules['mmcv._ext']


@pytest.mark.parametrize(
    'error',
    [
        ImportError('_ext.so: undefined symbol: _ZN3c10'),
        OSError('libtorch_cuda.so: cannot open shared object file'),
        ModuleNotFoundError("No module named 'mmcv_plugin'", name='mmcv_plugin'),
    ],
)
def test_extension_that_does_not_load_is_named_and_replaced(not_installed, error):
    sys.meta_path.insert(0, FakeExtension(error))
    with pytest.warns(UserWarning) as caught:
        assert install_mmcv_ops() == 'stand-in'
        assert install_mmcv_ops() == 'stand-in'
    (message,) = [str(warning.message) for warning in caught]
    assert 'compiled ops failed to import' in message and str(error) in message
    assert 'torchvision and torch answer' in message and 'pip install' in message
    assert sys.modules['mmcv._ext'].nms is nms_ops.nms


def test_compiled_extension_is_left_alone(not_installed):
    sys.meta_path.insert(0, FakeExtension())
    assert install_mmcv_ops() == 'compiled'
    assert sys.modules['mmcv._ext'].nms == 'the compiled one'
    assert install_mmcv_ops() == 'compiled'
    assert mmcv._ext.nms == 'the compiled one'


def test_other_errors_of_an_extension_are_not_swallowed(not_installed):
    sys.meta_path.insert(0, FakeExtension(RuntimeError('driver gone')))
    with pytest.raises(RuntimeError, match='driver gone'):
        install_mmcv_ops()
    assert 'mmcv._ext' not in sys.modules


def test_installing_again_changes_nothing(stand_in):
    assert install_mmcv_ops() == 'stand-in'
    assert sys.modules['mmcv._ext'] is stand_in


def test_without_mmcv_there_is_nothing_to_do(not_installed, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert install_mmcv_ops() == 'no mmcv'
    assert 'mmcv._ext' not in sys.modules


def test_is_found_where_mmcv_looks_for_it(stand_in):
    assert importlib.util.find_spec('mmcv._ext').loader is not None
    if sys.version_info < (3, 12):  # deprecated, then removed; mmcv.utils.check_ops_exist
        assert pkgutil.find_loader('mmcv._ext') is not None
    from mmengine.utils.dl_utils.misc import mmcv_full_available

    assert mmcv_full_available()
    from mmcv.utils import ext_loader

    assert ext_loader.load_ext('_ext', ['nms', 'carafe_forward']) is stand_in


def test_other_ops_can_be_imported_but_not_called(stand_in):
    assert hasattr(stand_in, 'carafe_forward')
    with pytest.raises(MissingOpError, match=r"'carafe_forward'.*MMCV_WITH_OPS=1 pip install"):
        stand_in.carafe_forward(1, features=2)
    with pytest.raises(NotImplementedError):
        stand_in.carafe_forward()
    with pytest.raises(LocalLearningError) as caught:
        stand_in.carafe_forward()
    assert '\n' not in str(caught.value)
    assert stand_in.carafe_forward.__name__ == 'carafe_forward'


@pytest.mark.parametrize(
    'installed, command',
    [
        ('onedl-mmcv', '--no-binary onedl-mmcv onedl-mmcv==2.1.0`'),
        ('mmcv', '--no-binary mmcv mmcv==2.1.0`'),
        ('mmcv-lite', 'run `pip uninstall mmcv-lite && MMCV_WITH_OPS=1 pip install'),
        (None, '--no-binary mmcv mmcv`'),
    ],
)
def test_the_mend_names_the_installed_distribution(stand_in, monkeypatch, installed, command):
    from importlib import metadata

    def version(name):
        if name != installed:
            raise metadata.PackageNotFoundError(name)
        return '2.1.0'

    monkeypatch.setattr(metadata, 'version', version)
    with pytest.raises(MissingOpError) as caught:
        stand_in.knn_forward()
    assert command in str(caught.value)


@pytest.mark.parametrize('name', ['__path__', '__file__', '__wrapped__', '_private'])
def test_python_protocols_get_no_answer(stand_in, name):
    with pytest.raises(AttributeError, match=name):
        getattr(stand_in, name)


def test_environment_report(stand_in, monkeypatch):
    import mmcv.ops
    import mmcv.utils

    monkeypatch.setattr(sys.modules['mmcv.ops.info'], 'ext_module', stand_in)
    assert 'not compiled' in mmcv.utils.collect_env()['MMCV Compiler']


@pytest.mark.slow
def test_mmdet_imports_in_a_fresh_process():
    output = run_python("""
import sys, fba_mm.compat
assert fba_mm.compat.install_mmcv_ops() in ('stand-in', 'compiled')
assert not any(name.startswith('mmdet') for name in sys.modules)
import mmdet.models, mmdet.apis
from mmdet.registry import MODELS
assert 'FasterRCNN' in MODELS and 'DCNv2' in MODELS
print('imported')
""")
    assert 'imported' in output
    assert 'not compiled' not in output, output


@pytest.mark.slow
def test_modules_that_were_imported_too_early_get_the_ops():
    run_python("""
import sys
sys.modules['mmcv._ext'] = None  # absent, also on a machine with compiled mmcv
import mmcv.cnn.bricks.transformer as transformer
try:
    from mmdet.structures.mask import structures
    assert structures.roi_align.__module__ == structures.__name__  # a fallback that raises
except ModuleNotFoundError:  # the original mmdet has no fallbacks
    structures = None
assert not hasattr(transformer, 'MultiScaleDeformableAttention')

import fba_mm.compat
assert fba_mm.compat.install_mmcv_ops() == 'stand-in'
from mmcv.ops import MultiScaleDeformableAttention, roi_align
assert transformer.MultiScaleDeformableAttention is MultiScaleDeformableAttention

if structures is None:
    from mmdet.structures.mask import structures
assert structures.roi_align is roi_align
import numpy as np
masks = structures.BitmapMasks(np.ones((1, 8, 8), np.uint8), 8, 8)
box = np.array([[0., 0., 8., 8.]], np.float32)
assert masks.crop_and_resize(box, (4, 4), np.array([0])).masks.all()
""")


def test_compiled_ops_set_aside(not_installed, monkeypatch):
    compiled = types.ModuleType('mmcv._ext')
    user = types.ModuleType('mmcv.ops.an_op')
    user.ext_module = compiled
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    monkeypatch.setitem(sys.modules, 'mmcv.ops.an_op', user)
    with pytest.raises(KeyError), without_compiled_ops():
        assert user.ext_module.nms is nms_ops.nms
        raise KeyError
    assert user.ext_module is compiled


def test_a_stand_in_stays(stand_in):
    with without_compiled_ops():
        assert sys.modules['mmcv._ext'] is stand_in
