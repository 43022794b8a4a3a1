"""What can be found wrong with a config before anything is trained or written."""
import copy
import os
import re
from contextlib import contextmanager
from typing import ContextManager, Iterator, Optional

from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, OPTIMIZERS, DefaultScope, Registry
from torch import nn

from ..config import type_name
from ..errors import LocalLearningError
from ..local import LocalBackbone
from .fba_hook import check_local_training


@contextmanager
def readable_errors(what: str, mend: str = 'check the config') -> Iterator[None]:
    """Turn what a faulty config makes OpenMMLab raise into one line.

    Args:
        what: What is being done, as in ``'the model cannot be built'``.
        mend: What the user should do about it.

    Raises:
        LocalLearningError: Anything was raised.
    """
    try:
        yield
    except LocalLearningError:
        raise
    except Exception as error:  # The config chooses what code runs here.
        # str() of a KeyError is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        reason = ' '.join(str(message).split()) or 'no reason given'
        unknown = re.match(r'(\S+) is not in the (\S+) registry', reason)
        if unknown:
            raise LocalLearningError(
                f'{what}: nothing is registered as {unknown[1]!r} ({unknown[2]} registry), check '
                'its spelling, or name the module that registers it in custom_imports') from error
        raise LocalLearningError(
            f'{what} ({type(error).__name__}: {reason[:300]}): {mend}') from error


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as the runner will, in the config's scope.

    Args:
        cfg: A complete config.

    Raises:
        LocalLearningError: It can't be built.
    """
    if not (cfg.get('model') or {}).get('type'):
        raise LocalLearningError('the config has no model: give a complete config')
    with readable_errors('the model cannot be built'), _scope(cfg):
        # A copy: some heads write into their config, and can't be built from it again.
        model = copy.deepcopy(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
        return MODELS.build(model)


def _scope(cfg: Config) -> ContextManager:
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')


def _registered(registry: Registry, kind: str, cfg: Config) -> Optional[type]:
    """What a name stands for in a config's scope, or None."""
    with _scope(cfg), registry.switch_scope_and_registry(None) as own:
        return own.get(kind)


def check_training(cfg: Config, model: nn.Module) -> OptimWrapper:
    """Refuse a config that can't be trained.

    Args:
        cfg: The config.
        model: Its model, from :func:`build_model`.

    Returns:
        The config's optimizer wrapper, for this model.

    Raises:
        LocalLearningError: Names the fault and its mend.
    """
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise LocalLearningError(f'the config has no {key}: give a complete training config')
    check_data(cfg, 'train', 'val')
    hooks = {type_name(hook.get('type')): hook for hook in cfg.get('custom_hooks') or []}
    local = [m for m in model.modules() if isinstance(m, LocalBackbone)]
    if 'FBAHook' not in hooks and any(m.num_modules > 1 for m in local):
        raise LocalLearningError(
            'the model has a LocalBackbone, but custom_hooks has no FBAHook to train it: add '
            "custom_hooks = [dict(type='FBAHook')], or inherit configs/_base_/fba.py")
    if 'FBAHook' in hooks:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        wrapper = _registered(OPTIM_WRAPPERS, kind, cfg) if isinstance(kind, str) else kind
        if wrapper is None:
            raise LocalLearningError(
                f"optim_wrapper.type={kind!r} is not registered: set it to 'LocalOptimWrapper'")
        check_local_training(model, wrapper, hooks['FBAHook'].get('scope', 'past'))
    optimizer = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(optimizer, str) and _registered(OPTIMIZERS, optimizer, cfg) is None:
        raise LocalLearningError(
            f'optim_wrapper.optimizer.type={optimizer!r} is not registered: check its spelling, as '
            "in 'SGD' and 'AdamW'")
    with readable_errors('the optimizer wrapper cannot be built'), _scope(cfg):
        return build_optim_wrapper(model, cfg.optim_wrapper)


def check_data(cfg: Config, *splits: str) -> None:
    """Refuse a config whose data isn't there.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are passed over.

    Raises:
        LocalLearningError: Names the path that is missing.
    """
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader')
        if dataloader is not None:
            _check_dataset(dataloader.get('dataset'), f'{split}_dataloader.dataset')


def _check_dataset(dataset: Optional[dict], where: str) -> None:
    if not isinstance(dataset, dict):
        return
    for key in ('dataset', 'datasets'):  # RepeatDataset, ConcatDataset, MultiImageMixDataset
        inner = dataset.get(key)
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            _check_dataset(one, f'{where}.{key}')
    if dataset.get('backend_args'):
        return  # Not on this machine's file system.
    root = dataset.get('data_root') or ''
    paths = [('data_root', root)]
    if isinstance(dataset.get('ann_file'), str):
        paths.append(('ann_file', _join(root, dataset['ann_file'])))
    prefixes = dataset.get('data_prefix')
    for prefix in (prefixes or {}).values() if isinstance(prefixes, dict) else [prefixes]:
        if isinstance(prefix, str):
            paths.append(('data_prefix', _join(root, prefix)))
    for key, path in paths:
        if not path or '://' in path:
            continue
        if not os.path.exists(path):
            raise LocalLearningError(
                f'{where}.{key}: {path} does not exist: put the data there, or set '
                f'--cfg-options {where}.data_root=PATH')
        if key == 'ann_file' and path.endswith('.json') and not _is_closed_json(path):
            raise LocalLearningError(
                f'{where}.ann_file: {path} is empty or cut off, copy or build it again')


def _is_closed_json(path: str) -> bool:
    """Whether the file starts and ends as JSON does; reading a large one twice would take long."""
    with open(path, 'rb') as file:
        start = file.read(100).lstrip()[:1]
        file.seek(max(os.path.getsize(path) - 100, 0))
        return start + file.read().rstrip()[-1:] in (b'{}', b'[]')


def _join(root: str, path: str) -> str:
    return path if not path or '://' in path else os.path.join(root, path)
