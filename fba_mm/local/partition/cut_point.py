"""What an auxiliary network knows of the place where it sits."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional, Sequence, Tuple

from torch import Tensor, nn

from .footprint import Footprint, image_channels
from .segment import Segment, Unrolled, same


@dataclass(frozen=True)
class StageMap:
    """The map at the end of one stage of the backbone.

    Attributes:
        stage: Index of the stage.
        channels: Channels of the map.
        stride: Pixels of the input per position of the map.
        level: Index in the tuple that the backbone returns, or None if it isn't returned.
        pooled: Whether the backbone returns it as a vector for each image, (N, C), not as a map.
        dilation: Of the stage's 3×3 convolutions.
    """

    stage: int
    channels: int
    stride: int
    level: Optional[int]
    pooled: bool = False
    dilation: int = 1


@dataclass(frozen=True)
class LaterBlock:
    """One of the backbone's segments that follow a module.

    Attributes:
        name: The segment's name, ``'layer2.0'``.
        stage: Index of its stage.
        channels: Channels of its output.
        stride: Pixels of the input per position of its output.
        path: Dotted name of the submodule that, called on the segment's input, gives its output,
            or None if it takes more than that.
    """

    name: str
    stage: int
    channels: int
    stride: int
    path: Optional[str]


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
        block: Index of the module's last segment among all of the backbone's.
        earlier_channels: Channels of the earlier modules' outputs.
        earlier_levels: Indices of the levels that earlier modules make.
        later: The segments that follow the module, in order, up to the backbone's last.
        copy_block: ``copy_block(path) -> nn.Module``, a copy of a later block with its weights.
            The block itself is ``step.source.backbone.get_submodule(path)`` in an iteration.
        as_map: ``as_map(x) -> (N, C, H, W)``, the module's output as a map of features, for
            backbones whose segments pass on something else (tokens); the identity for others.
        reduced_output: ``reduced_output(level, channels) -> nn.Module``, which makes of a block's
            output what the backbone would return (a final norm, a class token); None where the
            backbone returns it as it is.
        reduced_head: ``reduced_head(channels, residual) -> nn.Module``, a light stand-in for the
            backbone's last segment, where that is the task's head; None where it isn't.
        last: The backbone's last segment.
        image_channels: Channels of the images that the backbone takes.
    """

    module: int
    num_modules: int
    stage: int
    channels: int
    stride: int
    stages: Tuple[StageMap, ...]
    reduced_block: Callable[[int, int, int], nn.Module]
    block: int = 0
    earlier_channels: Tuple[int, ...] = ()
    earlier_levels: Tuple[int, ...] = ()
    later: Tuple[LaterBlock, ...] = ()
    copy_block: Optional[Callable[[str], nn.Module]] = None
    as_map: Callable[[Tensor], Tensor] = same
    reduced_output: Optional[Callable[[int, int], nn.Module]] = None
    reduced_head: Optional[Callable[[int, Optional[str]], nn.Module]] = None
    last: Optional[Segment] = None
    image_channels: int = 3

    @property
    def levels(self) -> Tuple[StageMap, ...]:
        """The maps that the backbone returns, in its order."""
        return tuple(sorted((s for s in self.stages if s.level is not None), key=lambda s: s.level))


def cut_points(
    backbone: nn.Module,
    unrolled: Unrolled,
    footprints: Sequence[Footprint],
    modules: Sequence[range],
) -> Tuple[CutPoint, ...]:
    """Describe the end of every module.

    Args:
        backbone: What is cut.
        unrolled: The backbone's segments.
        footprints: One for each segment.
        modules: The segments of each module, from :func:`cut`.
    """
    last_of_stage = {s.stage: i for i, s in enumerate(unrolled.segments) if s.stage >= 0}
    stages = tuple(
        StageMap(
            stage,
            footprints[i].channels,
            footprints[i].stride,
            unrolled.segments[i].level,
            footprints[i].pooled,
            unrolled.segments[i].dilation,
        )
        for stage, i in sorted(last_of_stage.items())
    )
    blocks = tuple(
        LaterBlock(segment.name, segment.stage, footprint.channels, footprint.stride, segment.path)
        for segment, footprint in zip(unrolled.segments, footprints)
    )
    channels = (
        unrolled.input_shape[0]
        if unrolled.input_shape
        else image_channels(backbone, unrolled.segments[0])
    )
    return tuple(
        CutPoint(
            module=k,
            num_modules=len(modules),
            stage=unrolled.segments[module[-1]].stage,
            channels=footprints[module[-1]].channels,
            stride=footprints[module[-1]].stride,
            stages=stages,
            reduced_block=unrolled.reduced_block,
            block=module[-1],
            earlier_channels=tuple(footprints[m[-1]].channels for m in modules[:k]),
            earlier_levels=tuple(
                segment.level
                for segment in unrolled.segments[: module.start]
                if segment.level is not None
            ),
            later=blocks[module.stop :],
            copy_block=partial(_copy_block, backbone),
            as_map=unrolled.as_map,
            reduced_output=unrolled.reduced_output,
            reduced_head=unrolled.reduced_head,
            last=unrolled.segments[-1],
            image_channels=channels,
        )
        for k, module in enumerate(modules)
    )


def _copy_block(backbone: nn.Module, path: str) -> nn.Module:
    return deepcopy(backbone.get_submodule(path))
