"""What can be found wrong with a config before anything is trained or written."""
import os
from contextlib import contextmanager
from typing import Iterator, Optional

from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPERS, DefaultScope
from torch import nn

from ..errors import LocalLearningError
from ..local import LocalBackbone
from .fba_hook import check_local_training


@contextmanager
def readable_errors(what: str) -> Iterator[None]:
    """Turn what a faulty config makes OpenMMLab raise into one line.

    Args:
        what: What is being done, as in ``'the model cannot be built'``.

    Raises:
        LocalLearningError: Anything was raised.
    """
    try:
        yield
    except LocalLearningError:
        raise
    except Exception as error:  # The config chooses what code runs here.
        reason = ' '.join(str(error).split())[:300] or 'no reason given'
        raise LocalLearningError(f'{what} ({type(error).__name__}: {reason}): check the config '
                                 ) from error


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as the runner will, in the config's scope.

    Args:
        cfg: A complete config.

    Raises:
        LocalLearningError: It can't be built.
    """
    if cfg.get('model') is None:
        raise LocalLearningError('the config has no model: give a complete config')
    with readable_errors('the model cannot be built'):
        scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))
        with scope:
            return MODELS.build(cfg.model)


def check_training(cfg: Config, model: nn.Module) -> None:
    """Refuse a config that can't be trained.

    Args:
        cfg: The config.
        model: Its model, from :func:`build_model`.

    Raises:
        LocalLearningError: Names the fault and its mend.
    """
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise LocalLearningError(f'the config has no {key}: give a complete training config')
    check_data(cfg, 'train', 'val')
    hooks = {hook['type'] for hook in cfg.get('custom_hooks') or []}
    local = [m for m in model.modules() if isinstance(m, LocalBackbone)]
    if 'FBAHook' not in hooks:
        if any(m.num_modules > 1 for m in local):
            raise LocalLearningError(
                'the model has a LocalBackbone, but custom_hooks has no FBAHook to train it: add '
                "custom_hooks = [dict(type='FBAHook')], or inherit configs/_base_/fba.py")
        return
    optim_wrapper = OPTIM_WRAPPERS.get(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if optim_wrapper is None:
        raise LocalLearningError(
            f'optim_wrapper.type={cfg.optim_wrapper.type!r} is not registered: set it to '
            "'LocalOptimWrapper'")
    check_local_training(model, optim_wrapper)


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
        if path and '://' not in path and not os.path.exists(path):
            raise LocalLearningError(
                f'{where}.{key}: {path} does not exist: put the data there, or set '
                f'--cfg-options {where}.data_root=PATH')


def _join(root: str, path: str) -> str:
    return path if not path or '://' in path else os.path.join(root, path)
