"""The steps into which a backbone unrolls."""

from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Dict, List, Optional, Tuple

from torch import Tensor, nn

# Under this name every segment can read the images themselves, as the backbone was given them.
IMAGES = 'images'


def same(x: Tensor) -> Tensor:
    """The map itself, where it needs no change."""
    return x


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
        run: ``run(backbone, x, *kept) -> x``, with maps of shape (N, C, H, W), or tokens (N, L, C)
            where the family has an ``as_map``; ``kept`` are the maps that ``reads`` names.
        submodules: Dotted names of the submodules that the segment uses, in the order of their use.
        stage: Index of the stage that it belongs to; -1 for the stem.
        level: Index in the tuple of maps that the backbone returns, if the segment's output is
            one of them.
        level_output: ``level_output(backbone, x) -> Tensor``, what the backbone does to the
            segment's output before it returns it, where that isn't what flows on to the next
            segment: a norm of the level, or pooling. Its layers are among ``submodules``, so that
            they are trained with the segment. None returns the output as it is.
        own_parameters: Names of the parameters of the backbone itself, not of a submodule, that
            the segment uses (a class token).
        keeps: Name under which the segment's output is kept for a later segment: the start of a
            skip connection that crosses segments.
        reads: Names of the kept outputs that the segment takes beside the previous segment's; or
            :data:`IMAGES`.
        dilation: Of its 3×3 convolutions, where its family's reduced blocks take one: what stands
            in for a dilated stage shall see as far.
    """

    name: str
    run: Callable[[nn.Module, Tensor], Tensor]
    submodules: Tuple[str, ...]
    stage: int
    level: Optional[int] = None
    level_output: Optional[Callable[[nn.Module, Tensor], Tensor]] = None
    own_parameters: Tuple[str, ...] = ()
    keeps: Optional[str] = None
    reads: Tuple[str, ...] = ()
    dilation: int = 1

    def advance(self, backbone: nn.Module, x: Tensor, kept: Dict[str, Tensor]) -> Tensor:
        """Run the segment with the kept maps that it reads, and keep its output if it says so.

        Args:
            backbone: The segment's backbone.
            x: Output of the previous segment.
            kept: Outputs of earlier segments by name, and the images; the segment's own is added.
        """
        x = self.run(backbone, x, *(kept[name] for name in self.reads))
        if self.keeps is not None:
            kept[self.keeps] = x
        return x

    @property
    def path(self) -> Optional[str]:
        """Name of the submodule that, called on x, is the whole of ``run``; None without one."""
        if isinstance(self.run, partial) and self.run.func is run_submodule:
            return self.run.keywords['path']
        return None

    def parameters(self, backbone: nn.Module) -> List[nn.Parameter]:
        """The parameters in ``backbone`` that the segment uses."""
        return [getattr(backbone, name) for name in self.own_parameters] + [
            p for path in self.submodules for p in backbone.get_submodule(path).parameters()
        ]

    def output_of(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """What the backbone returns of the segment's output, if that is one of its levels.

        Args:
            backbone: The segment's backbone.
            x: What ``run`` has returned.
        """
        return x if self.level_output is None else self.level_output(backbone, x)


@dataclass(frozen=True)
class Unrolled:
    """A backbone as a sequence of segments, and how to build a block like its own.

    Attributes:
        segments: In the order in which the backbone runs them.
        reduced_block: ``reduced_block(in_channels, out_channels, stride) -> nn.Module``, a single
            block of the backbone's kind (same kernels, norm and activation) for auxiliary
            networks. It takes and returns what flows between segments; and ``dilation=``, if
            segments of the family have another one than 1.
        reduced_output: ``reduced_output(level, channels) -> nn.Module``, a stand-in for what the
            backbone does to a level before it returns it (``Segment.level_output``), with layers
            of its own. None where it does nothing.
        as_map: ``as_map(x) -> (N, C, H, W)`` makes a map of what flows between segments.
        input_shape: (channels, height, width) of the images that the segments are traced on; None
            leaves it to :func:`trace_footprints`.
        returns_tuple: Whether the backbone returns a tuple of maps. One that returns its only level
            as it is, an image, says False.
        reduced_head: ``reduced_head(channels, residual) -> nn.Module``, a light stand-in for the
            last segment, where that is the task's head (reconstruction). It is called with
            (x, first map or None, images).
        auxiliary: Type of the auxiliary networks that modules get unless the config names one.
        level_names: Keys under which the backbone returns its levels, where it returns a dict.
        num_scores: Number of classes, where the backbone is a whole classifier and returns their
            scores as its only level.
    """

    segments: List[Segment] = field(default_factory=list)
    reduced_block: Optional[Callable[[int, int, int], nn.Module]] = None
    reduced_output: Optional[Callable[[int, int], nn.Module]] = None
    as_map: Callable[[Tensor], Tensor] = same
    input_shape: Optional[Tuple[int, int, int]] = None
    returns_tuple: bool = True
    reduced_head: Optional[Callable[[int, Optional[str]], nn.Module]] = None
    auxiliary: str = 'SLM'
    level_names: Optional[Tuple[str, ...]] = None
    num_scores: Optional[int] = None
