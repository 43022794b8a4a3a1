"""Supervised local learning for OpenMMLab: FBA and the methods it is compared with.

Importing the package registers :class:`LocalBackbone`, :class:`FBAHook`,
:class:`LocalOptimWrapper`, :class:`LocalDataParallel`, :class:`LocalShardedDataParallel`,
:class:`LocalModuleParallel` and the parts in :mod:`fba_mm.models` in MMEngine's root registries, so
that a config of any OpenMMLab project names them without a prefix. With the prefix, as in
``type='fba_mm.LocalBackbone'``, MMEngine imports the package by itself, without ``custom_imports``.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

for _package in ('torch', 'mmengine', 'mmcv'):
    if _find_spec(_package) is None:
        from .compat.distributions import how_to_install as _how_to_install

        raise ImportError(
            f'fba_mm needs {_package}, which is not installed: {_how_to_install(_package)}'
        )

# Before any OpenMMLab model is imported: most of them import mmcv's compiled operators.
from .compat import (  # noqa: E402
    drop_unasked_notes,
    install_config_names,
    install_mmagic_import,
    install_mmcv_ops,
    install_mmseg_name,
)

install_mmcv_ops()
install_mmagic_import()
install_mmseg_name()
install_config_names()
drop_unasked_notes()

from mmengine.registry import MODELS as _MODELS  # noqa: E402

from .engine import (  # noqa: E402
    AmpLocalOptimWrapper,
    FBAHook,
    LocalDataParallel,
    LocalModuleParallel,
    LocalOptimWrapper,
    LocalShardedDataParallel,
)
from .errors import LocalLearningError  # noqa: E402
from .local import LocalBackbone  # noqa: E402
from .local.partition import Segment, Unrolled, backbone_family, run_submodule  # noqa: E402
from .localize import localize  # noqa: E402
from .models import SlicedFocalLoss, cifar_resnet, light_fcn, light_retinanet  # noqa: E402
from .plain_pytorch import LocalLearning  # noqa: E402

__version__ = '0.1.0'
# What needs mmdet, mmpretrain or much else, and is imported when a config names it.
_WHERE = {
    'CheckedVOCDataset': 'datasets.checked_voc',
    'ClasswiseVOCMetric': 'evaluation',
    'HandwrittenDigits': 'datasets.classification',
    'LocalMemoryHook': 'analysis.local_memory_hook',
    'ReflectPad': 'datasets.classification',
    'STL10': 'datasets.classification',
    'SVHN': 'datasets.classification',
    'YOLOV1': 'models.yolov1',
    'YOLOV1Head': 'models.yolov1',
    'YOLOV1Loss': 'models.yolov1',
}
__all__ = [
    'AmpLocalOptimWrapper',
    'FBAHook',
    'LocalBackbone',
    'LocalDataParallel',
    'LocalLearning',
    'LocalLearningError',
    'LocalModuleParallel',
    'LocalOptimWrapper',
    'LocalShardedDataParallel',
    'Segment',
    'SlicedFocalLoss',
    'Unrolled',
    'backbone_family',
    'cifar_resnet',
    'light_fcn',
    'light_retinanet',
    'localize',
    'run_submodule',
]


def __dir__() -> list:
    return sorted({*globals(), *_WHERE})


def __getattr__(name: str) -> object:
    # MMEngine resolves type='fba_mm.NAME' as an attribute of the package.
    if name in _WHERE:
        return getattr(_import_module(f'.{_WHERE[name]}', __name__), name)
    found = _MODELS.module_dict.get(name)
    if not getattr(found, '__module__', '').startswith(f'{__name__}.'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return found
