"""Key features of the current batch, which the cut took away from the modules."""

from typing import Dict, List, Optional, Union

import torch
from torch import Tensor

from ..errors import LocalLearningError


class FeatureBank:
    """Holds the maps that auxiliary networks may look at (FBA paper, equation 3).

    What goes in is detached and aliased, never copied: the network keeps these maps anyway, so
    that the bank costs no memory.

    Args:
        scope: ``'past'``: maps of the modules that have already run in this iteration.
            ``'all'``: maps of all modules; those ahead come from a pass without gradients, which
            costs one more forward. ``'off'``: the bank stays empty.
        dtype: What maps are stored in that the network doesn't keep anyway, those of the pass ahead
            under ``'all'``: ``'bfloat16'`` takes half the memory. Unset, as they are.

    Raises:
        LocalLearningError: Unknown ``scope`` or ``dtype``, or a ``dtype`` without ``'all'``.

    Example:
        >>> bank = FeatureBank('past')
        >>> bank.put(0, torch.rand(2, 64, 32, 32))
        >>> bank.get(0).shape, bank.get(1)
        (torch.Size([2, 64, 32, 32]), None)
    """

    scopes = ('past', 'all', 'off')

    def __init__(self, scope: str = 'past', dtype: Union[None, str, torch.dtype] = None):
        if scope not in self.scopes:
            raise LocalLearningError(
                f'scope={scope!r}: the feature bank knows {", ".join(map(repr, self.scopes))}'
            )
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype is not None and not getattr(dtype, 'is_floating_point', False):
            raise LocalLearningError(
                f"bank_dtype={dtype!r}: give 'bfloat16', 'float16' or 'float32'"
            )
        if dtype is not None and scope != 'all':
            raise LocalLearningError(
                f"bank_dtype={str(dtype)[6:]!r} goes with scope='all': the bank stores nothing of "
                f'its own with scope={scope!r}, leave bank_dtype out'
            )
        self.scope = scope
        self.dtype = dtype
        self._maps: Dict[Union[int, str], Tensor] = {}
        self._pooled: List[Tensor] = []

    def put(self, level: Union[int, str], feature: Tensor, ahead: bool = False) -> None:
        """Bank one map.

        Args:
            level: Index in the tuple of maps that the backbone returns, or the name under which one
                segment keeps its output for a later one.
            feature: Of shape (N, C, H, W).
            ahead: Whether it comes from the pass ahead, so that the bank alone keeps it.
        """
        if self.scope == 'off':
            return
        feature = feature.detach()
        self._maps[level] = feature.to(self.dtype) if ahead and self.dtype else feature

    def get(self, level: Union[int, str]) -> Optional[Tensor]:
        """The map of a level or name, or None if the bank holds none."""
        return self._maps.get(level)

    def put_pooled(self, feature: Tensor) -> None:
        """Bank the next module's output, averaged over its positions.

        Args:
            feature: Of shape (N, C, H, W).
        """
        if self.scope != 'off':
            self._pooled.append(feature.detach().flatten(2).mean(2))

    def pooled(self) -> List[Tensor]:
        """The averages of the modules that have run, in order, (N, C) each."""
        return self._pooled

    def clear(self) -> None:
        """Forget the batch."""
        self._maps.clear()
        self._pooled.clear()
