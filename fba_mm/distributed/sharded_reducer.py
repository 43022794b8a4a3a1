"""``ShardedReducer``: gradients become pieces of their means over all processes."""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Sequence

from torch import nn

from .sharded_part import ShardedPart


class ShardedReducer:
    """What :class:`GradientReducer` is where parameters are whole, for parts in pieces.

    Args:
        parts: All parts of a model.
    """

    # Also while gradients accumulate: whole ones would be as large as the module.
    each_iteration = True
    enabled = True

    def __init__(self, parts: Sequence[ShardedPart]):
        self._parts = parts
        self._part_of: Dict[nn.Parameter, ShardedPart] = {
            p: part for part in parts for p in (*part.pieces, *part.scalars)
        }
        self._complete: List[List[nn.Parameter]] = []

    def begin_iteration(self) -> None:
        """Forget what an iteration before has reduced."""
        self._complete.clear()

    @contextmanager
    def reducing(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Around the last backward pass of this iteration that gives these parameters gradients.

        Args:
            parameters: Pieces; the parts that they are of are reduced after the pass, unless that
                was done in this iteration already.
        """
        yield
        parts = {self._part_of[p] for p in parameters}
        for part in self._parts:
            if part in parts and part.gathered:
                part.reduce()
                self._complete.append([p for p in part.pieces if p.requires_grad])

    def finish(self) -> Iterator[List[nn.Parameter]]:
        """Yields the parameters of each part whose gradients are complete."""
        while self._complete:
            yield self._complete.pop(0)
