"""Stock necks and dense heads that are recomputed in the backward pass."""

from functools import lru_cache
from typing import Any, Union

import torch
from mmengine.registry import MODELS
from torch import nn

from ..local.recompute import recomputing


@MODELS.register_module(name='Recomputed')
def recomputed(of: Union[str, type], **kwargs: Any) -> nn.Module:
    """A stock neck or dense head that keeps its inputs alone, and is run again for its gradients.

    A dense head is recomputed level by level (``forward_single``), so that the activations of one
    level are there at a time; anything else as a whole. Values and gradients are the same bits, and
    running statistics advance once. :func:`fba_mm.localize.checkpointed` puts it into configs.

    Args:
        of: Type of the stock module.
        **kwargs: The stock module's arguments.

    Returns:
        A module of a subclass of the stock one's class.

    Example:
        >>> neck = dict(type='Recomputed', of='FPN', in_channels=[8], out_channels=8, num_outs=2)
    """
    module = MODELS.build(dict(kwargs, type=of))
    module.__class__ = _subclass(type(module))
    return module


@lru_cache(maxsize=None)
def _subclass(stock: type) -> type:
    name = 'forward_single' if hasattr(stock, 'forward_single') else 'forward'

    def run(self: nn.Module, *args: Any) -> Any:
        method = getattr(super(subclass, self), name)
        if not (self.training and torch.is_grad_enabled()):
            return method(*args)
        return recomputing(method, self.modules(), *args)

    subclass = type(f'Recomputed{stock.__name__}', (stock,), {name: run})
    return subclass
