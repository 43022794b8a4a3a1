"""Configs of the training steps that are simulated or measured."""

import copy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..config import type_name
from ..errors import LocalLearningError
from ..tasks import backbone_key


def backbone_of(cfg: Config) -> ConfigDict:
    """What a config's model has for a backbone, which is the generator of mmagic's.

    Args:
        cfg: A training config.

    Raises:
        LocalLearningError: It has no model, or one with neither.
    """
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise LocalLearningError('the config has no model: give a complete training config')
    backbone = model.get(backbone_key(model))
    if not isinstance(backbone, dict):
        raise LocalLearningError(
            'the config has no model.backbone and no model.generator: give the config of a '
            'detector, classifier or super-resolution network'
        )
    return backbone


def trains_locally(cfg: Config) -> bool:
    """Whether a config's backbone or generator is a LocalBackbone already.

    Args:
        cfg: A training config.

    Raises:
        LocalLearningError: It has no model with a backbone or generator.

    Example:
        >>> trains_locally(load_config('fba_mm::retinanet_r50_fba.py'))
        True
    """
    return type_name(backbone_of(cfg).get('type')) == 'LocalBackbone'


def in_mixed_precision(cfg: Config, dtype: str = 'bfloat16') -> Config:
    """A config that trains under autocast, on CPU and GPU.

    Args:
        cfg: A training config. It is not changed.
        dtype: ``'bfloat16'`` or ``'float16'``.

    Example:
        >>> cfg = load_config('fba_mm::retinanet_r50_fba.py')
        >>> in_mixed_precision(cfg).optim_wrapper.type
        'AmpLocalOptimWrapper'
    """
    cfg = copy.deepcopy(cfg)
    if cfg.get('optim_wrapper'):
        cfg.optim_wrapper.update(type='AmpLocalOptimWrapper', dtype=dtype)
    return cfg


def from_scratch(cfg: Config) -> Config:
    """A copy of a config that loads no weights, wherever in the model that is asked for.

    Args:
        cfg: A training config. It is not changed.

    Example:
        >>> cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> 'init_cfg' in from_scratch(cfg).model.backbone
        False
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    cfg.model = ConfigDict(_without_pretrained(cfg.model))
    return cfg


def _without_pretrained(part: Any) -> Any:
    if isinstance(part, dict):
        kept = {
            key: _without_pretrained(value)
            for key, value in part.items()
            if not (key == 'init_cfg' and _is_pretrained(value))
        }
        # Weights that the constructor of a model would load, or download.
        for key in ('pretrained', 'teacher_ckpt'):
            if kept.get(key):
                kept[key] = False if kept[key] is True else None
        return kept
    if isinstance(part, (list, tuple)):
        return type(part)(_without_pretrained(item) for item in part)
    return part


def _is_pretrained(init_cfg: Any) -> bool:
    if isinstance(init_cfg, (list, tuple)):
        return any(_is_pretrained(one) for one in init_cfg)
    return isinstance(init_cfg, dict) and type_name(init_cfg.get('type')) in (
        'Pretrained',
        'PretrainedInit',
    )
