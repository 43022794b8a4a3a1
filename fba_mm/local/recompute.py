"""Segments that run without keeping anything but their input, and once more for the backward pass.

Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) by the
partition's segments: of any backbone that can be cut, its stem included, without an option of its
own for it.
"""

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from ..errors import LocalLearningError
from .partition import Segment

# Output of the last segment, levels by their index, kept maps by their name.
SegmentOutputs = Tuple[Tensor, Dict[int, Tensor], Dict[str, Tensor]]


def run_segments(
    backbone: nn.Module, segments: Sequence[Segment], x: Tensor, kept: Dict[str, Tensor]
) -> SegmentOutputs:
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


def run_recomputing(
    backbone: nn.Module,
    segments: Sequence[Segment],
    x: Tensor,
    kept: Dict[str, Tensor],
    batch_size: Optional[int] = None,
) -> SegmentOutputs:
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
            return recomputing(
                partial(run_segments, backbone, segments), _layers(backbone, segments), x, read
            )
        with torch.no_grad():
            return run_segments(backbone, segments, x, read)

    if (
        batch_size is None
        or batch_size >= len(x)
        or not all(_by_image(layer) for layer in _layers(backbone, segments))
    ):
        return run(x, read)
    # Views: what is kept is the input as a whole.
    slices = zip(x.split(batch_size), *(tensor.split(batch_size) for tensor in read.values()))
    outputs = [run(part, dict(zip(read, maps))) for part, *maps in slices]
    xs, levels, own = zip(*outputs)
    joined = {id(xs[0]): torch.cat(xs)}

    def join(parts: Sequence[Dict[Any, Tensor]]) -> Dict[Any, Tensor]:
        # A level and a kept map may be the output itself, which is then there once.
        return {
            key: joined[id(first)]
            if id(first) in joined
            else torch.cat([part[key] for part in parts])
            for key, first in parts[0].items()
        }

    return joined[id(xs[0])], join(levels), join(own)


def _layers(backbone: nn.Module, segments: Sequence[Segment]) -> Iterator[nn.Module]:
    return (
        layer
        for segment in segments
        for path in segment.submodules
        for layer in backbone.get_submodule(path).modules()
    )


def _by_image(layer: nn.Module) -> bool:
    """Whether a layer makes the same of images one by one as of a batch."""
    if not layer.training:
        return True
    draws = any(
        (name == 'p' or 'drop' in name) and isinstance(value, (int, float)) and value > 0
        for name, value in vars(layer).items()
    )
    return not (draws or isinstance(layer, _BatchNorm))


def recomputing(function: Callable, modules: Iterable[nn.Module], *args: Any) -> Any:
    """Call a function, keep its arguments alone, and call it once more in the backward pass.

    The second call sees the norms' settings of the first and updates copies of buffers, so that
    running statistics advance once.

    Args:
        function: Of tensors, or of tuples, lists and dicts of them.
        modules: The layers that it runs.
        *args: Its arguments.

    Raises:
        LocalLearningError: In the backward pass, if an argument was written to in the meantime.
    """
    return checkpoint(_TwoCalls(function, list(modules)), *args, use_reentrant=False)


class _TwoCalls:
    """A function that knows whether it is called for the first time."""

    def __init__(self, function: Callable, modules: List[nn.Module]):
        self.function = function
        self.modules = [module for module in modules if module._buffers]
        self.versions: Optional[List[int]] = None
        self.tracking: List[Tuple[nn.Module, bool]] = []

    def __call__(self, *args: Any) -> Any:
        versions = [leaf._version for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)]
        if self.versions is None:
            self.versions = versions
            self.tracking = [
                (module, module.track_running_stats)
                for module in self.modules
                if isinstance(module, _BatchNorm)
            ]
            return self.function(*args)
        if versions != self.versions:
            # Autograd would say so of a tensor that it keeps; of this one it doesn't know.
            raise LocalLearningError(
                'a map was written to in place after the forward pass, and cannot be used to '
                'recompute what follows it: set inplace=False in the layer that reads it, or leave '
                "'recompute' out"
            )
        with _copied_buffers(self.modules), _tracking(self.tracking):
            return self.function(*args)


@contextmanager
def _copied_buffers(modules: List[nn.Module]) -> Iterator[None]:
    # Norms must not be told to do without: autograd saves their statistics, and counts them.
    own = {module: dict(module._buffers) for module in modules}
    for module, buffers in own.items():
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in own.items():
            module._buffers.update(buffers)


@contextmanager
def _tracking(settings: List[Tuple[nn.Module, bool]]) -> Iterator[None]:
    # A head that modules share was run without, for what their passes changed to be put back.
    before = [(norm, norm.track_running_stats) for norm, _ in settings]
    for norm, tracks in settings:
        norm.track_running_stats = tracks
    try:
        yield
    finally:
        for norm, tracks in before:
            norm.track_running_stats = tracks
