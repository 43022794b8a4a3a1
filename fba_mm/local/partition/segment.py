"""The steps into which a backbone unrolls."""
from dataclasses import dataclass, field
from typing import Callable, List, Optional, Tuple

from torch import Tensor, nn


def run_submodule(backbone: nn.Module, x: Tensor, path: str) -> Tensor:
    """Run one submodule of ``backbone``; the ``run`` of most segments, with ``path`` bound.

    Args:
        backbone: The module to look into.
        x: Input of the submodule.
        path: Dotted name, as :meth:`torch.nn.Module.get_submodule` takes it.
    """
    return backbone.get_submodule(path)(x)


@dataclass(frozen=True)
class Segment:
    """One step of an unrolled backbone, between two places where it can be cut.

    It holds names and functions but no modules. A deep copy of the backbone (an EMA model, say)
    therefore runs its own modules, and not those of the original.

    Attributes:
        name: Name for messages and reports, ``'stem'`` or ``'layer1.0'``.
        run: ``run(backbone, x) -> x``, with maps of shape (N, C, H, W).
        submodules: Dotted names of the submodules that the segment uses.
        stage: Index of the stage that it belongs to; -1 for the stem.
        level: Index in the tuple of maps that the backbone returns, if the segment's output is
            one of them.
    """
    name: str
    run: Callable[[nn.Module, Tensor], Tensor]
    submodules: Tuple[str, ...]
    stage: int
    level: Optional[int] = None

    def parameters(self, backbone: nn.Module) -> List[nn.Parameter]:
        """The parameters of the segment's submodules in ``backbone``."""
        return [p for path in self.submodules for p in backbone.get_submodule(path).parameters()]


@dataclass(frozen=True)
class Unrolled:
    """A backbone as a sequence of segments, and how to build a block like its own.

    Attributes:
        segments: In the order in which the backbone runs them.
        reduced_block: ``reduced_block(in_channels, out_channels, stride) -> nn.Module``, a single
            block of the backbone's kind (same kernels, norm and activation) for auxiliary
            networks.
    """
    segments: List[Segment] = field(default_factory=list)
    reduced_block: Optional[Callable[[int, int, int], nn.Module]] = None
