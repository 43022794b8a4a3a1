"""Let mmagic 1.2 be imported beside the mmcv and numpy that are installed.

mmagic's last release refuses mmcv 2.2 and later by number, and uses a name that numpy 2 has
dropped. It works with both: the two places are all that has to be got over. What is said of the
future while its models are imported, some ten lines, is dropped. Nothing happens until somebody
imports mmagic, and mmcv and numpy are as they were as soon as these two modules are
loaded.
"""

import importlib.abc
import importlib.machinery
import sys
import warnings
from contextlib import ExitStack
from unittest import mock

# The last version of mmcv that mmagic accepts is below this one.
_REFUSED_FROM = (2, 2)
_ACCEPTED = '2.1.0'


def install_mmagic_import() -> None:
    """Make ``import mmagic`` work from now on, if mmagic is installed. Again changes nothing.

    Example:
        >>> from fba_mm.compat import install_mmagic_import
        >>> install_mmagic_import()
        >>> from mmagic.models import EDSRNet
    """
    if not any(isinstance(finder, _MMagicFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MMagicFinder())


class _MMagicFinder(importlib.abc.MetaPathFinder):
    """Finds three of mmagic's modules as Python would, and wraps what loads them."""

    loaders = {
        'mmagic': '_PackageLoader',
        'mmagic.models': '_ModelsLoader',
        'mmagic.utils.trans_utils': '_TransformsLoader',
    }

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.loaders:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = globals()[self.loaders[fullname]](spec.loader)
        return spec


class _WrappedLoader(importlib.abc.Loader):
    """Runs a module's code within some changes."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        with ExitStack() as changes:
            self.change(changes)
            self._loader.exec_module(module)

    def change(self, changes: ExitStack) -> None:
        """Enter what the module's code needs."""
        raise NotImplementedError


class _PackageLoader(_WrappedLoader):
    def change(self, changes: ExitStack) -> None:
        import mmcv
        from mmengine.utils import digit_version

        if tuple(digit_version(mmcv.__version__)[:2]) >= _REFUSED_FROM:
            changes.enter_context(mock.patch.object(mmcv, '__version__', _ACCEPTED))


class _ModelsLoader(_WrappedLoader):
    def change(self, changes: ExitStack) -> None:
        # The diffusers that it needs announces what later versions lack.
        changes.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore', FutureWarning)


class _TransformsLoader(_WrappedLoader):
    def change(self, changes: ExitStack) -> None:
        import numpy as np

        if not hasattr(np, 'bool8'):
            changes.enter_context(mock.patch.object(np, 'bool8', np.bool_, create=True))
