"""Optimizer settings by layer, for constructors that look into the backbone."""
import copy
from typing import Any, Optional

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import LocalLearningError
from ..local import LocalBackbone


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LocalOptimWrapperConstructor:
    """Lets a constructor that knows a backbone's class and names see them under LocalBackbone.

    MMDetection's and MMSegmentation's ``LearningRateDecayOptimizerConstructor`` takes the depth of
    a layer from names as ``'backbone.stages.0'``, and asks for the backbone's class. Auxiliary
    networks are named ``'auxiliary'``: to such a constructor they are parts of the head.
    :func:`fba_mm.localize` puts this in where it is needed.

    Args:
        optim_wrapper_cfg: The optimizer wrapper, with ``optimizer``.
        paramwise_cfg: ``stock_constructor``, its type, and that constructor's own settings.

    Raises:
        LocalLearningError: ``stock_constructor`` is missing, or the model has no LocalBackbone.

    Example:
        >>> optim_wrapper = dict(
        ...     type='LocalOptimWrapper', optimizer=dict(type='AdamW', lr=1e-4),
        ...     constructor='LocalOptimWrapperConstructor',
        ...     paramwise_cfg=dict(stock_constructor='mmdet.LearningRateDecayOptimizerConstructor',
        ...                        decay_rate=0.7, decay_type='layer_wise', num_layers=6))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        settings = copy.copy(paramwise_cfg or {})
        stock: Any = settings.pop('stock_constructor', None)
        if stock is None:
            raise LocalLearningError(
                'optim_wrapper.constructor=LocalOptimWrapperConstructor stands for another one: '
                'name it in optim_wrapper.paramwise_cfg.stock_constructor')
        self._stock = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=stock, optim_wrapper_cfg=optim_wrapper_cfg, paramwise_cfg=settings))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper of all parameters of a model that learns locally."""
        return self._stock(_with_stock_names(model.module if is_model_wrapper(model) else model))


def _with_stock_names(model: nn.Module) -> nn.Module:
    """The model's parameters under the names that they have in the stock model."""
    view = nn.Module()
    auxiliary = None
    for name, child in model.named_children():
        if isinstance(child, LocalBackbone):
            child, auxiliary = child.backbone, child.auxiliary
        view.add_module(name, child)
    if auxiliary is None:
        raise LocalLearningError(
            'optim_wrapper.constructor=LocalOptimWrapperConstructor is for models with a '
            'LocalBackbone: give the stock constructor itself')
    view.add_module('auxiliary', auxiliary)
    for name, parameter in model.named_parameters(recurse=False):
        view.register_parameter(name, parameter)
    return view
