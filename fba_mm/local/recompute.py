"""Segments that run without keeping anything but their input, and once more for the backward pass.

Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) by the
partition's segments: of any backbone that can be cut, its stem included, without an option of its
own for it.
"""
from contextlib import contextmanager, nullcontext
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..errors import LocalLearningError
from .partition import Segment

# Output of the last segment, levels by their index, kept maps by their name.
SegmentOutputs = Tuple[Tensor, Dict[int, Tensor], Dict[str, Tensor]]


def run_segments(backbone: nn.Module, segments: Sequence[Segment], x: Tensor,
                 kept: Dict[str, Tensor]) -> SegmentOutputs:
    """Run some segments one after the other.

    Args:
        backbone: What they are segments of.
        segments: The segments.
        x: Input of the first one.
        kept: Maps that they may read, by name.

    Returns:
        Output of the last segment, the levels among their outputs, and what they keep for others.
    """
    levels: Dict[int, Tensor] = {}
    known = dict(kept)
    for segment in segments:
        x = segment.advance(backbone, x, known)
        if segment.level is not None:
            levels[segment.level] = segment.output_of(backbone, x)
    return x, levels, {name: known[name] for name in known if name not in kept}


def run_recomputing(backbone: nn.Module, segments: Sequence[Segment], x: Tensor,
                    kept: Dict[str, Tensor],
                    batch_size: Optional[int] = None) -> SegmentOutputs:
    """:func:`run_segments`, but keep the input alone, and recompute the rest in the backward pass.

    Values, gradients and running statistics are the same. Where nothing is trained, nothing is
    recomputed.

    Args:
        backbone: See :func:`run_segments`.
        segments: See :func:`run_segments`.
        x: See :func:`run_segments`.
        kept: See :func:`run_segments`.
        batch_size: Images that run, and are recomputed, at once; None for all. Segments that tie
            the images of a batch together, or draw for them, see all in any case.

    Raises:
        LocalLearningError: In the backward pass, if an input was written to in the meantime.
    """
    read = {name: kept[name] for segment in segments for name in segment.reads if name in kept}
    trained = any(p.requires_grad for segment in segments for p in segment.parameters(backbone))
    trained = trained or any(tensor.requires_grad for tensor in (x, *read.values()))

    def run(x: Tensor, read: Dict[str, Tensor]) -> SegmentOutputs:
        if trained:
            return checkpoint(_Span(backbone, segments), x, read, use_reentrant=False)
        with torch.no_grad():
            return run_segments(backbone, segments, x, read)

    if batch_size is None or batch_size >= len(x) or not all(
            _by_image(layer) for layer in _layers(backbone, segments)):
        return run(x, read)
    # Views: what is kept is the input as a whole.
    slices = zip(x.split(batch_size), *(tensor.split(batch_size) for tensor in read.values()))
    outputs = [run(part, dict(zip(read, maps))) for part, *maps in slices]
    xs, levels, own = zip(*outputs)
    joined = {id(xs[0]): torch.cat(xs)}

    def join(parts: Sequence[Dict[Any, Tensor]]) -> Dict[Any, Tensor]:
        # A level and a kept map may be the output itself, which is then there once.
        return {key: joined[id(first)] if id(first) in joined else torch.cat(
            [part[key] for part in parts]) for key, first in parts[0].items()}

    return joined[id(xs[0])], join(levels), join(own)


def _layers(backbone: nn.Module, segments: Sequence[Segment]) -> Iterator[nn.Module]:
    return (layer for segment in segments for path in segment.submodules
            for layer in backbone.get_submodule(path).modules())


def _by_image(layer: nn.Module) -> bool:
    """Whether a layer makes the same of images one by one as of a batch."""
    if not layer.training:
        return True
    draws = any((name == 'p' or 'drop' in name) and isinstance(value, (int, float)) and value > 0
                for name, value in vars(layer).items())
    return not (draws or isinstance(layer, _BatchNorm))


class _Span:
    """Segments that know whether they run for the first time."""

    def __init__(self, backbone: nn.Module, segments: Sequence[Segment]):
        self.backbone = backbone
        self.segments = segments
        self.versions: Optional[List[int]] = None

    def __call__(self, x: Tensor, read: Dict[str, Tensor]) -> SegmentOutputs:
        again = self.versions is not None
        versions = [tensor._version for tensor in (x, *read.values())]
        if again and versions != self.versions:
            # Autograd would say so of a tensor that it keeps; of this one it doesn't know.
            raise LocalLearningError(
                f'the input of {self.segments[0].name} was written to in place after the forward '
                'pass, and cannot be used to recompute: set inplace=False in what comes before it, '
                "or leave 'recompute' out")
        self.versions = versions
        with _copied_buffers(self.backbone, self.segments) if again else nullcontext():
            return run_segments(self.backbone, self.segments, x, read)


@contextmanager
def _copied_buffers(backbone: nn.Module, segments: Sequence[Segment]) -> Iterator[None]:
    """Let segments update copies of their buffers: running statistics advance once in a step."""
    # Norms must not be told to do without: autograd saves their statistics, and counts them.
    layers = {layer for layer in _layers(backbone, segments) if layer._buffers}
    own = {layer: dict(layer._buffers) for layer in layers}
    for layer in layers:
        for name, buffer in own[layer].items():
            layer._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for layer, buffers in own.items():
            layer._buffers.update(buffers)
