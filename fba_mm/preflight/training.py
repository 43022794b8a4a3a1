"""What can be found wrong with a training config before anything is trained or written."""

from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..config import custom_hooks, type_name
from ..engine.fba_hook import check_local_training
from ..engine.optimizer_settings import check_keys, check_param_groups
from ..errors import LocalLearningError
from ..local import local_backbones
from .building import config_scope, readable_errors, registered
from .classes import check_classes
from .data import check_data


def check_training(cfg: Config, model: nn.Module) -> OptimWrapper:
    """Refuse a config that can't be trained.

    Args:
        cfg: The config.
        model: Its model, from :func:`build_model`.

    Returns:
        The config's optimizer wrapper, for this model.

    Raises:
        LocalLearningError: Says what is wrong and how to fix it.
    """
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise LocalLearningError(f'the config has no {key}: give a complete training config')
    check_data(cfg, 'train', 'val')
    check_classes(cfg, model, 'train', 'val')
    fba_hooks = [hook for name, hook in custom_hooks(cfg) if name == 'FBAHook']
    if len(fba_hooks) > 1:
        raise LocalLearningError(
            f'custom_hooks has {len(fba_hooks)} FBAHooks: modules would be trained as many times, '
            'leave one'
        )
    local = local_backbones(model).values()
    if not fba_hooks and any(m.num_modules > 1 for m in local):
        raise LocalLearningError(
            'the model has a LocalBackbone, but custom_hooks has no FBAHook to train it: add '
            "custom_hooks = [dict(type='FBAHook')], or inherit configs/_base_/fba.py"
        )
    if fba_hooks:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        wrapper = registered(OPTIM_WRAPPERS, kind, cfg) if isinstance(kind, str) else kind
        if wrapper is None:
            raise LocalLearningError(
                f"optim_wrapper.type={kind!r} is not registered: set it to 'LocalOptimWrapper'"
            )
        hook = fba_hooks[0]
        if isinstance(hook, dict):
            settings = {key: value for key, value in hook.items() if key != 'priority'}
            with readable_errors('custom_hooks cannot be built'), config_scope(cfg):
                hook = HOOKS.build(settings)
        check_local_training(model, wrapper, hook.bank.scope)
        check_keys(cfg.optim_wrapper, model)
    optimizer = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(optimizer, str) and registered(OPTIMIZERS, optimizer, cfg) is None:
        raise LocalLearningError(
            f'optim_wrapper.optimizer.type={optimizer!r} is not registered: check its spelling, as '
            "in 'SGD' and 'AdamW'"
        )
    with readable_errors('the optimizer wrapper cannot be built'), config_scope(cfg):
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    check_param_groups(optim_wrapper, model)
    return optim_wrapper


def use_atomic_checkpoints(cfg: Config) -> None:
    """Let checkpoints be written completely or not at all, where MMEngine's hook writes them.

    Args:
        cfg: The config; the hook for checkpoints is changed.
    """
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = dict()
    hooks = cfg.default_hooks
    if 'checkpoint' in hooks and hooks['checkpoint'] is None:
        return
    hooks.setdefault('checkpoint', dict(interval=1))
    if type_name(hooks['checkpoint'].get('type', 'CheckpointHook')) == 'CheckpointHook':
        hooks['checkpoint']['type'] = 'AtomicCheckpointHook'
