"""Activation checkpointing for any backbone: by its own option, or around its layers."""

import inspect
from functools import partial
from typing import List

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..config import config_scope
from ..errors import LocalLearningError
from ..local.partition import unroll
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


def checkpoint_layers(backbone: nn.Module) -> List[str]:
    """Recompute the layers of a backbone in the backward pass instead of keeping what they made.

    Layers are the segments of a backbone of a known family, so far as each is one module;
    otherwise the containers that the backbone holds directly, or in a list. A single operation
    isn't worth it: its input would be kept instead of its output.

    Args:
        backbone: A built backbone. It is changed.

    Returns:
        The names of the layers.

    Raises:
        LocalLearningError: It has no layers to recompute.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)))
        >>> checkpoint_layers(net)
        ['1']
    """
    try:
        layers = [
            s.path or s.submodules[0]
            for s in unroll(backbone).segments
            if s.path or len(s.submodules) == 1
        ]
    except LocalLearningError:
        layers = _containers(backbone)
    if not layers:
        raise LocalLearningError(
            f'backbone {type(backbone).__name__} has no layers to recompute: leave checkpointing '
            'out'
        )
    for module in backbone.modules():
        # What writes to its input would spoil what the layer is recomputed from.
        if getattr(module, 'inplace', False) is True:
            module.inplace = False
    for name in layers:
        layer = backbone.get_submodule(name)
        # Not reentrant: that would give no gradients to layers whose input needs none.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return layers


def _containers(module: nn.Module, prefix: str = '') -> List[str]:
    names = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            names += _containers(child, f'{prefix}{name}.')
        elif any(True for _ in child.children()):
            names.append(prefix + name)
    return names
