"""Which of the backbone's levels are looked at by the neck behind it.

Many necks leave the finest level out, as RetinaNet's FPN does with ``start_level=1``. By
back-propagation that level is kept for the backward pass anyway. Between isolated modules it need
not be.
"""

from typing import Dict, Sequence, Set

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..method_owner import is_method_of
from .partition import StageMap
from .task_loss import StubbableBackbone

# Detectors whose losses see the backbone's levels through extract_feat() alone. By the class that
# defines the method, as subclasses may well look elsewhere.
_LOSS_OWNERS = (
    'DetectionTransformer',
    'SingleStageDetector',
    'TwoStageDetector',
    'TwoStagePanopticSegmentor',
)


class _Touched(TorchDispatchMode):
    """Notes which maps any operation has as its input; their shapes may be asked for."""

    def __init__(self, maps: Dict[int, Tensor]):
        super().__init__()
        self._levels = {x.untyped_storage()._cdata: level for level, x in maps.items()}
        self.found: Set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_flatten((args, kwargs))[0]:
            if isinstance(x, Tensor):
                self.found.add(self._levels.get(x.untyped_storage()._cdata, -1))
        return func(*args, **(kwargs or {}))


def levels_read(
    model: nn.Module, source: StubbableBackbone, levels: Sequence[StageMap]
) -> Set[int]:
    """The levels that a model's neck computes with, found by a pass on small maps.

    Args:
        model: A model.
        source: Its backbone.
        levels: The maps that the backbone returns.

    Returns:
        Their indices; all of them for a model of which it isn't known.
    """
    everything = {stage.level for stage in levels}
    neck = getattr(model, 'neck', None)
    like = next((p for p in neck.parameters()), None) if isinstance(neck, nn.Module) else None
    is_known = is_method_of(model, 'loss', ('mmdet',), _LOSS_OWNERS)
    if not is_known or like is None or any(s.pooled for s in levels):
        return everything
    sizes = [max(128 // stage.stride, 1) for stage in levels]
    maps = {
        stage.level: like.new_zeros(1, stage.channels, size, size)
        for stage, size in zip(levels, sizes)
    }
    training = {module: module.training for module in neck.modules()}
    touched = _Touched(maps)
    try:
        neck.eval()
        with torch.no_grad(), source.answering(tuple(maps.values())), touched:
            model.extract_feat(like.new_zeros(1, 3, 128, 128))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError):
        return everything  # What doesn't run here will say so in training.
    finally:
        for module, mode in training.items():
            module.training = mode
    return everything & touched.found
