"""Optimizer settings by parameter name, with auxiliary networks as parts of the head."""

import copy
from typing import Optional

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..config import type_name
from ..distributed import placement_of
from ..errors import LocalLearningError
from ..local import LocalBackbone
from ..tasks import backbone_keys


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LocalOptimWrapperConstructor:
    """Lets optimizer settings that are meant for the backbone reach it, and nothing else.

    MMEngine takes the settings of ``paramwise_cfg.custom_keys`` for each parameter whose name
    contains the key, so that ``'backbone'`` would slow down or freeze the auxiliary networks of a
    :class:`LocalBackbone`, too. MMDetection's and MMSegmentation's
    ``LearningRateDecayOptimizerConstructor`` takes the depth of a layer from names as
    ``'backbone.stages.0'``, and asks for the backbone's class. With this constructor, they see the
    wrapped backbone in its place, and auxiliary networks as parts of the head. The key
    ``'backbone.auxiliary'`` sets theirs. :func:`fba_mm.localize` and ``tools/train.py`` put it in
    where it is needed.

    Args:
        optim_wrapper_cfg: The optimizer wrapper, with ``optimizer``.
        paramwise_cfg: Settings of the constructor that this one stands for, and its type as
            ``stock_constructor``, unless it is MMEngine's default.

    Raises:
        LocalLearningError: The model has no LocalBackbone.

    Example:
        >>> optim_wrapper = dict(
        ...     type='LocalOptimWrapper', optimizer=dict(type='AdamW', lr=1e-4),
        ...     constructor='LocalOptimWrapperConstructor',
        ...     paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}))
        >>> optim_wrapper = dict(
        ...     type='LocalOptimWrapper', optimizer=dict(type='AdamW', lr=1e-4),
        ...     constructor='LocalOptimWrapperConstructor',
        ...     paramwise_cfg=dict(stock_constructor='mmdet.LearningRateDecayOptimizerConstructor',
        ...                        decay_rate=0.7, decay_type='layer_wise', num_layers=6))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        settings = copy.copy(paramwise_cfg or {})
        stock = settings.pop('stock_constructor', 'DefaultOptimWrapperConstructor')
        if settings.get('custom_keys'):
            settings['custom_keys'] = {
                _shown(key): value for key, value in settings['custom_keys'].items()
            }
        self._stock = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=stock, optim_wrapper_cfg=optim_wrapper_cfg, paramwise_cfg=settings or None)
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper of all parameters of a model that learns locally."""
        return self._stock(_with_stock_names(placement_of(model).model))


def _shown(name: str) -> str:
    """A parameter's name, or a key for it, as the stock constructor sees it."""
    # Auxiliary networks have the name of the backbone that they are in, in capitals: keys that are
    # meant for the backbone don't match it, and it is as long. Of several keys that match, MMEngine
    # takes the longest.
    for backbone in backbone_keys():
        name = name.replace(f'{backbone}.auxiliary', f'{backbone.upper()}.auxiliary')
        name = name.replace(f'{backbone}.backbone', backbone)
    return name


def _with_stock_names(model: nn.Module) -> nn.Module:
    """The model's parameters under the names that they have in the stock model."""
    view = nn.Module()
    depth = getattr(model, 'get_layer_depth', None)
    local = None
    for name, child in model.named_children():
        if not isinstance(child, LocalBackbone):
            view.add_module(name, child)
            continue
        local = name
        view.add_module(name, child.backbone)
        beside = nn.Module()
        beside.add_module('auxiliary', child.auxiliary)
        view.add_module(name.upper(), beside)
    if local is None:
        raise LocalLearningError(
            'optim_wrapper.constructor=LocalOptimWrapperConstructor is for models with a '
            'LocalBackbone: give the stock constructor itself'
        )
    for name, parameter in model.named_parameters(recurse=False):
        view.register_parameter(name, parameter)
    if depth is not None:
        capitals = f'{local.upper()}.'

        def get_layer_depth(name: str):
            if name.startswith(f'{local}.'):
                name = name.replace(f'{local}.', f'{local}.backbone.', 1)
            elif name.startswith(capitals):
                name = name.replace(capitals, f'{local}.', 1)
            return depth(name)

        view.get_layer_depth = get_layer_depth
    return view


def check_settings(local_backbone: LocalBackbone, name: str, optim_wrapper: dict) -> None:
    """Refuse settings that are meant for the backbone and would reach auxiliary networks.

    Args:
        local_backbone: Holds the auxiliary networks.
        name: Its name in the model.
        optim_wrapper: Config of the optimizer wrapper.

    Raises:
        LocalLearningError: Names the key and how to fix it.
    """
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    constructor = type_name(optim_wrapper.get('constructor') or '')
    if not keys or constructor == LocalOptimWrapperConstructor.__name__:
        return
    keys = sorted(sorted(keys), key=len, reverse=True)  # MMEngine takes the first that matches.
    for inner, _ in local_backbone.auxiliary.named_parameters():
        full = f'{name}.auxiliary.{inner}'
        key = next((key for key in keys if key in full), None)
        if key is not None and _shown(key) not in _shown(full):
            stock = f", paramwise_cfg.stock_constructor='{constructor}'" if constructor else ''
            raise LocalLearningError(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} reaches the auxiliary networks '
                'in the backbone, too, which are parts of the head: set optim_wrapper.constructor='
                f"'LocalOptimWrapperConstructor'{stock}"
            )
