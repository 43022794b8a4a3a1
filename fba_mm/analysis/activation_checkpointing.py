"""Which backbones have an option for activation checkpointing."""

import inspect

from mmengine.config import Config
from mmengine.registry import MODELS

from ..config import config_scope
from ..tasks import backbone_key


def takes_with_cp(cfg: Config) -> bool:
    """Whether a config's backbone or generator checkpoints by itself, with ``with_cp=True``.

    Args:
        cfg: A stock config.

    Example:
        >>> takes_with_cp(load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'))
        True
    """
    kind = cfg.model[backbone_key(cfg.model)].get('type')
    if isinstance(kind, str):
        with config_scope(cfg), MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    for owner in getattr(kind, '__mro__', ()):
        if '__init__' not in vars(owner):
            continue
        parameters = inspect.signature(vars(owner)['__init__']).parameters
        if 'with_cp' in parameters:
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False
