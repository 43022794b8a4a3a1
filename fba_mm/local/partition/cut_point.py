"""What an auxiliary network knows of the place where it sits."""
from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple

from torch import nn

from .footprint import Footprint
from .segment import Unrolled


@dataclass(frozen=True)
class StageMap:
    """The map at the end of one stage of the backbone.

    Attributes:
        stage: Index of the stage.
        channels: Channels of the map.
        stride: Pixels of the input per position of the map.
        level: Index in the tuple that the backbone returns, or None if it isn't returned.
    """
    stage: int
    channels: int
    stride: int
    level: Optional[int]


@dataclass(frozen=True)
class CutPoint:
    """The end of a module: its own map, and those of every stage.

    Attributes:
        module: Index of the module, from 0.
        num_modules: Number of modules, K.
        stage: Stage of the module's last segment; -1 for the stem.
        channels: Channels of the module's output.
        stride: Pixels of the input per position of the module's output.
        stages: Every stage's map, in order.
        reduced_block: ``reduced_block(in_channels, out_channels, stride) -> nn.Module``.
    """
    module: int
    num_modules: int
    stage: int
    channels: int
    stride: int
    stages: Tuple[StageMap, ...]
    reduced_block: Callable[[int, int, int], nn.Module]

    @property
    def levels(self) -> Tuple[StageMap, ...]:
        """The maps that the backbone returns, in its order."""
        return tuple(sorted((s for s in self.stages if s.level is not None),
                            key=lambda s: s.level))


def cut_points(unrolled: Unrolled, footprints: Sequence[Footprint],
               modules: Sequence[range]) -> Tuple[CutPoint, ...]:
    """Describe the end of every module.

    Args:
        unrolled: The backbone's segments.
        footprints: One for each segment.
        modules: The segments of each module, from :func:`cut`.
    """
    last_of_stage = {s.stage: i for i, s in enumerate(unrolled.segments) if s.stage >= 0}
    stages = tuple(
        StageMap(stage, footprints[i].channels, footprints[i].stride, unrolled.segments[i].level)
        for stage, i in sorted(last_of_stage.items()))
    return tuple(
        CutPoint(
            module=k,
            num_modules=len(modules),
            stage=unrolled.segments[module[-1]].stage,
            channels=footprints[module[-1]].channels,
            stride=footprints[module[-1]].stride,
            stages=stages,
            reduced_block=unrolled.reduced_block) for k, module in enumerate(modules))
