"""Use mmcv's operators where its compiled module ``mmcv._ext`` is absent or does not load."""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from contextlib import contextmanager

from ..errors import LocalLearningError

_NAME = 'mmcv._ext'


class MissingOpError(LocalLearningError, NotImplementedError):
    """A model called an mmcv op that only the compiled mmcv can answer.

    It is a :class:`~fba_mm.errors.LocalLearningError` because the fix is the user's: another model
    or another mmcv, so that the command-line tools print one line instead of a traceback. It is a
    ``NotImplementedError`` as well, so that code which probes for an implementation can tell it
    from a wrong value.
    """


def install_mmcv_ops():
    """Make ``mmcv.ops``, and with it ``mmdet.models``, importable without compiled mmcv.

    A compiled ``mmcv._ext`` that loads is left alone. Otherwise a module that answers the common
    ops through torchvision and torch, forward and backward, on CPU and GPU, takes its place:
    ``nms``, ``softnms``, ``nms_match``, RoIAlign, RoIPool, sigmoid and softmax focal loss,
    deformable convolution (v1 and v2) and multi-scale deformable attention. Any other op can be
    imported, and raises :class:`MissingOpError` when it is called.

    Call it before ``mmdet.models`` is imported. Modules that were imported earlier, and replaced an
    op by a fallback because ``mmcv.ops`` could not be imported then, get the op now. Calling it
    again changes nothing.

    Returns:
        str: ``'compiled'`` (mmcv's own ops are in use), ``'stand-in'`` (torchvision and torch
        answer) or ``'no mmcv'`` (``import mmcv`` fails, so there is nothing to do).

    Warns:
        UserWarning: A compiled module is there and fails to load, usually because it was built for
            another torch.

    Example:
        >>> from fba_mm.compat import install_mmcv_ops
        >>> install_mmcv_ops()
        'stand-in'
        >>> from mmcv.ops import nms
    """
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        return 'stand-in' if isinstance(loaded, _StandIn) else 'compiled'
    try:
        # torch first: a sound mmcv._ext links against the libraries that only torch's import loads.
        import mmcv
        import torch
    except ImportError:
        return 'no mmcv'
    try:
        importlib.import_module(_NAME)
        return 'compiled'
    except (ImportError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == _NAME
        if not absent:
            warnings.warn(
                f"mmcv's compiled ops failed to import ({type(error).__name__}: {error}), probably "
                f'because they were built for another torch than {torch.__version__}: torchvision '
                'and torch answer mmcv ops instead. To have the compiled ones, '
                f'{_how_to_compile()}',
                stacklevel=2,
            )
    spec = importlib.machinery.ModuleSpec(_NAME, _StandInLoader(), origin=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = mmcv._ext = module
    _replace_fallbacks()
    return 'stand-in'


@contextmanager
def without_compiled_ops():
    """Within this context, torchvision and torch answer mmcv's ops even if compiled ones are there.

    Compiled ops read memory, which the tensors of a simulation don't have.

    Example:
        >>> cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> with without_compiled_ops():
        ...     prediction = predict_memory(cfg, (2, 3, 800, 1333))
    """
    loaded = sys.modules.get(_NAME)
    if loaded is None or isinstance(loaded, _StandIn):
        yield
        return
    loader = _StandInLoader()
    stand_in = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(_NAME, loader))
    loader.exec_module(stand_in)
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')
    ]
    compiled = [module.ext_module for module in users]
    try:
        for module in users:
            module.ext_module = stand_in
        yield
    finally:
        for module, own in zip(users, compiled):
            module.ext_module = own


class _StandIn(types.ModuleType):
    """The module that takes the place of ``mmcv._ext``."""

    def __getattr__(self, name):
        # No compiled op starts with an underscore; Python's own protocols ask for names that do,
        # and take an answer for support.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing_op(*args, **kwargs):
            raise MissingOpError(
                f'mmcv op {name!r} needs compiled mmcv, torchvision and torch have no counterpart: '
                f'choose a model without it, or {_how_to_compile()}'
            )

        missing_op.__name__ = missing_op.__qualname__ = name
        return missing_op


class _StandInLoader(importlib.abc.Loader):
    """Fills the stand-in. mmcv takes a spec without a loader for a missing module."""

    def create_module(self, spec):
        return _StandIn(spec.name, "Answers mmcv's compiled ops through torchvision and torch.")

    def exec_module(self, module):
        from . import deform_ops, focal_loss_ops, nms_ops, roi_ops

        for ops in (deform_ops, focal_loss_ops, nms_ops, roi_ops):
            for name in ops.__all__:
                setattr(module, name, getattr(ops, name))
        # mmcv's environment report calls these two.
        module.get_compiler_version = lambda: 'not compiled (fba_mm.compat)'
        module.get_compiling_cuda_version = lambda: 'not compiled (fba_mm.compat)'


def _how_to_compile():
    """End of a sentence: how to get compiled ops for the mmcv distribution that is installed."""
    name, pinned = 'mmcv', ''
    for candidate in ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'):
        try:
            pinned = '==' + importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
        name = candidate
        break
    first = ''
    if name == 'mmcv-lite':
        first, name = 'pip uninstall mmcv-lite && ', 'mmcv'
    # Isolated builds see no torch and then skip the ops without a word; the resulting wheel would
    # be taken from pip's cache again.
    return (
        f'run `{first}MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir '
        f'--force-reinstall --no-deps --no-binary {name} {name}{pinned}` (needs a C++ compiler,'
        " nvcc for CUDA, and torch < 2.14: later ones reject mmcv's C++17), or install a wheel "
        'built for your torch and CUDA (`mim install` finds it where there is one)'
    )


def _replace_fallbacks():
    """Do again the guarded ``from mmcv.ops import ...`` of modules that were imported too early.

    mmcv and the onedl-* packages guard such imports with ``except ImportError`` and go on with a
    function that raises. ``mmdet.structures`` is one that a training script usually imports before
    the config's ``custom_imports`` run. Only names are replaced; a class that derives from a
    fallback keeps it, but those live in ``mmdet.models``, which can't have been imported.
    """
    for name, module in list(sys.modules.items()):
        package = name.partition('.')[0]
        if not package.startswith('mm') or package == 'mmengine' or name.startswith('mmcv.ops'):
            continue
        try:
            source = module.__loader__.get_source(name)
        except (AttributeError, ImportError, OSError):
            continue
        for statement in _guarded_imports(source or ''):
            try:
                ops = importlib.import_module(statement.module)
            except ImportError:  # an op that this mmcv lacks: the fallback is right
                continue
            for alias in statement.names:
                if hasattr(ops, alias.name):
                    setattr(module, alias.asname or alias.name, getattr(ops, alias.name))


def _guarded_imports(source):
    """The ``from mmcv.ops... import ...`` statements right inside a module's ``try`` blocks."""
    if 'mmcv.ops' not in source:
        return []
    blocks = [block for block in ast.parse(source).body if isinstance(block, ast.Try)]
    return [
        statement
        for block in blocks
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        and not statement.level
        and (statement.module + '.').startswith('mmcv.ops.')
    ]
