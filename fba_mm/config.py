"""Configs as users give them: by path or by name, with types as names or as classes."""

import re
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, ContextManager, Dict, Iterator, List, Mapping, Optional, Tuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path, is_installed

from .compat.config_names import own_config
from .compat.distributions import how_to_install
from .errors import LocalLearningError

# Packages that not every user has.
_OPTIONAL = ('mmdet', 'mmpretrain', 'mmseg', 'mmagic')


def load_config(config: str) -> Config:
    """Load a config by path, or by name from an installed OpenMMLab package.

    Args:
        config: ``'configs/retinanet_r50_fba.py'`` or
            ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.

    Raises:
        LocalLearningError: It doesn't exist, its package isn't installed, or it can't be read.

    Example:
        >>> load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model.type
        'RetinaNet'
    """
    package = config.split('::')[0] if '::' in config else None
    own = own_config(config)
    # MMEngine would go and install whatever has this name in the package index, even where the
    # package is there but its distribution has another name.
    if package and own is None and _is_missing(package):
        how = (
            how_to_install(package)
            if package in _OPTIONAL
            else 'install it or check its spelling, as in mmdet::detr/detr_r50_8xb2-150e_coco.py'
        )
        raise LocalLearningError(f'config {config}: the package {package} is not installed: {how}')
    try:
        if own is not None:
            return Config.fromfile(str(own))
        # MMEngine finds names of letters, digits and underscores alone, and not mmdet::gn+ws/...
        if package and re.match(r'\w+::\w+/', config):
            return get_config(config)
        if package:
            folder = get_installed_path(MODULE2PACKAGE.get(package, package))
            config_file = Path(folder, '.mim/configs', config.partition('::')[2])
            return Config.fromfile(str(config_file))
        return Config.fromfile(config)
    except FileNotFoundError as error:
        raise LocalLearningError(
            f'config {config} not found ({error}): check its {"name" if package else "path"}'
        ) from error
    except LocalLearningError:
        raise
    except ModuleNotFoundError as error:
        # MMEngine names the distribution of what a config inherits from.
        missing = next(
            (
                name
                for name in _OPTIONAL
                if re.search(rf'\b{name}', str(error)) and _is_missing(name)
            ),
            None,
        )
        if missing is None:
            raise _unreadable(config, error) from error
        raise LocalLearningError(
            f'config {config} needs {missing}, which is not installed: {how_to_install(missing)}'
        ) from error
    except Exception as error:  # A config is Python code: anything may come out of it.
        raise _unreadable(config, error) from error


def _is_missing(package: str) -> bool:
    return not is_installed(MODULE2PACKAGE.get(package, package))


def _unreadable(config: str, error: Exception) -> LocalLearningError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    if 'Duplicate key is not allowed among bases' in reason:
        reason += (
            ': inherit one of them, and write into the config what the other has under this key'
        )
    return LocalLearningError(f'config {config} cannot be read: {type(error).__name__}: {reason}')


def parts_of(part: Any, name: str = '') -> Iterator[Tuple[str, dict]]:
    """All dicts in a config, itself included, with their dotted names.

    Args:
        part: A config or a part of one.
        name: What it is called.

    Example:
        >>> [name for name, _ in parts_of(dict(heads=[dict(), dict()]), 'model')]
        ['model', 'model.heads.0', 'model.heads.1']
    """
    if isinstance(part, dict):
        yield name, part
    # ConfigDict.items() would make copies.
    items = (
        dict.items(part)
        if isinstance(part, dict)
        else enumerate(part)
        if isinstance(part, (list, tuple))
        else ()
    )
    for key, value in items:
        yield from parts_of(value, f'{name}.{key}' if name else str(key))


def class_of(part: Mapping, scope: Optional[str]) -> Optional[type]:
    """The class of a part of a model's config; None if nothing is registered under its type.

    Args:
        part: The part's config.
        scope: Of the whole config, or the package that the part's type is from.
    """
    if isinstance(part.get('type'), type):
        return part['type']
    with DefaultScope.overwrite_default_scope(
        scope or 'mmengine'
    ), MODELS.switch_scope_and_registry(None) as registry:
        return registry.get(part['type'])


def config_scope(cfg: Mapping) -> ContextManager:
    """The context in which a config's names mean what they mean to the runner.

    ``default_scope=None``, as in MMDetection's pure-Python configs, is no scope: whatever is built
    looks in the registry of its own package first.

    Args:
        cfg: The config.

    Example:
        >>> cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
        >>> with config_scope(cfg):
        ...     model = MODELS.build(cfg.model)
    """
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))


def name_classes(part: Any) -> Any:
    """Put the full names of classes and functions in the place of these, throughout a config.

    Pure-Python configs have classes for types. MMEngine writes them into a file without quotes,
    once they have been looked at, and that file can't be read again.

    Args:
        part: A config or a part of one; dicts are changed in place.

    Returns:
        The part.

    Example:
        >>> name_classes(dict(type=LocalLearningError))
        {'type': 'fba_mm.errors.LocalLearningError'}
    """
    if isinstance(part, Config):
        name_classes(part._cfg_dict)
    elif isinstance(part, dict):
        # A ConfigDict's own items() would import what nobody has asked for yet.
        for key, value in list(dict.items(part)):
            dict.__setitem__(part, key, name_classes(value))
    elif type(part) in (list, tuple):
        return type(part)(map(name_classes, part))
    elif isinstance(part, (type, FunctionType)) and part.__module__ != 'builtins':
        name = part.__name__
        if getattr(sys.modules.get(part.__module__), name, None) is part:
            return f'{part.__module__}.{name}'
    return part


def settings_of(cfg: Config) -> Dict[str, str]:
    """A config's settings as text, by dotted name, for comparing configs of several processes.

    Args:
        cfg: The config.

    Example:
        >>> settings_of(Config(dict(model=dict(type='RetinaNet', scales=[1, 2]))))
        {'model.type': 'RetinaNet', 'model.scales.0': '1', 'model.scales.1': '2'}
    """
    settings: Dict[str, str] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                collect(f'{name}.{key}' if name else str(key), inner)
        elif isinstance(value, (list, tuple)) and value:
            for i, inner in enumerate(value):
                collect(f'{name}.{i}', inner)
        else:
            # A function's address is its process's own.
            settings[name] = re.sub(r' at 0x[0-9a-f]+', '', str(value))

    collect('', cfg.to_dict())
    return settings


def custom_hooks(cfg: Mapping) -> List[Tuple[str, Any]]:
    """The bare class names of a config's custom hooks, and what the config has for them.

    Args:
        cfg: The config.

    Example:
        >>> custom_hooks(Config(dict(custom_hooks=[dict(type='FBAHook', scope='all')])))
        [('FBAHook', {'type': 'FBAHook', 'scope': 'all'})]
    """
    return [
        (type_name(hook.get('type') if isinstance(hook, dict) else type(hook)), hook)
        for hook in cfg.get('custom_hooks') or []
    ]


def type_name(kind: Any) -> str:
    """The bare name of a config's ``type``, which may have a scope or be the class itself.

    Args:
        kind: What stands behind ``type``; None for a config without one.

    Example:
        >>> type_name('mmdet.ResNet'), type_name(LocalLearningError)
        ('ResNet', 'LocalLearningError')
    """
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')
