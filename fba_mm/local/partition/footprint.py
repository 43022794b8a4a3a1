"""What each segment of a backbone produces and keeps for its backward pass."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from ...compat.mmcv_ops import without_compiled_ops
from ...compat.torch_versions import checkpointing_on_meta
from ...errors import LocalLearningError
from .segment import IMAGES, Segment, Unrolled, same

# Packages whose backbones' segments are compared with their forward by the tests.
_TESTED = ('mmdet', 'mmpretrain', 'mmseg', 'mmagic', 'torchvision', 'fba_mm')


@dataclass(frozen=True)
class Footprint:
    """Shape and memory of one segment, for one image of the shape that was traced.

    Attributes:
        name: The segment's name.
        channels: Channels of its output.
        stride: Pixels of the input per position of the output, along the height; a fraction where
            the output is larger than the input.
        saved_bytes: Bytes that autograd keeps for the segment's backward pass, parameters aside.
        frozen: Whether no parameter of the segment is trained.
        pooled: Whether the backbone returns the segment's output as a vector for each image.
        output_bytes: Bytes of what the segment passes on.
    """

    name: str
    channels: int
    stride: Union[int, float]
    saved_bytes: int
    frozen: bool
    pooled: bool = False
    output_bytes: int = 0


class _ShapesOfBatchNorm(TorchDispatchMode):
    """What batch norm returns, without the dozen operators that it is made of on the meta device.

    Most of a trace's time went into them.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[dict] = None
    ) -> Any:
        if func is not torch.ops.aten.native_batch_norm.default:
            return func(*args, **(kwargs or {}))
        x, *_, training = args[:6]
        # Statistics of half precision are single; in evaluation none are kept.
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean = x.new_empty(x.size(1) if training else 0, dtype=dtype)
        return torch.empty_like(x), mean, torch.empty_like(mean)


class _Trace(nn.Module):
    """Runs the segments one by one, and counts what each leaves with autograd."""

    def __init__(self, backbone: nn.Module, segments: Sequence[Segment], as_map: Callable):
        super().__init__()
        self.backbone = backbone
        self.segments = segments
        self.as_map = as_map

    def forward(self, x: Tensor, own: Optional[set]) -> Any:
        if own is None:
            return self.backbone(x)
        results = []
        # One map is saved by the segment that made it and by the one that reads it: it counts
        # once, for its maker.
        seen = set(own)
        kept: Dict[str, Tensor] = {IMAGES: x}
        for segment in self.segments:
            saved: List[int] = []

            def pack(tensor: Tensor, saved: List[int] = saved) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in seen:
                    seen.add(storage._cdata)
                    saved.append(storage.nbytes())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                x = segment.advance(self.backbone, x, kept)
                level = None if segment.level is None else segment.output_of(self.backbone, x)
            results.append((self.as_map(x), level, sum(saved), x.nbytes))
        return results


def trace_footprints(
    backbone: nn.Module,
    segments: Sequence[Segment],
    input_shape: Optional[Tuple[int, int, int]] = None,
    as_map: Callable[[Tensor], Tensor] = same,
) -> List[Footprint]:
    """Find what each segment makes and keeps, without computing anything.

    The segments run on torch's meta device, where tensors have shapes but no memory. What autograd
    saves is what ``torch.autograd.graph.saved_tensors_hooks`` sees, so that checkpointed blocks,
    frozen layers and normalization in evaluation mode count for what they keep.

    Args:
        backbone: The backbone that the segments belong to. It is left as it was.
        segments: From :func:`unroll`.
        input_shape: (channels, height, width) of one image, in pixels. Unset, 256×256 with as many
            channels as the first convolution takes.
        as_map: Of the backbone's :class:`Unrolled`.

    Raises:
        LocalLearningError: The backbone doesn't run on an image of this shape.
    """
    input_shape = input_shape or (image_channels(backbone, segments[0]), 256, 256)
    trace = _Trace(backbone, segments, as_map)
    training = backbone.training
    # Before the parameters are looked at: some backbones freeze stages only here.
    backbone.train()
    tensors = {}
    for name, tensor in (*trace.named_parameters(), *trace.named_buffers()):
        # Not a fake tensor's like, which would be a fake tensor: torch 2.1 can't run these on meta.
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='meta')
        tensors[name] = meta.requires_grad_(tensor.requires_grad)
    # Buffers are never saved under their own name in training, but frozen norms keep them.
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    image = torch.empty(2, *input_shape, device='meta')
    try:
        # Synchronized norms would wait for other processes, on a device where nothing is computed
        # and where torch 2.4 cannot communicate.
        with mock.patch.object(
            nn.SyncBatchNorm, 'forward', _BatchNorm.forward
        ), mock.patch.multiple(
            dist, all_reduce=mock.DEFAULT, all_gather=mock.DEFAULT
        ), checkpointing_on_meta(), without_compiled_ops(), _ShapesOfBatchNorm():
            results = functional_call(trace, tensors, (image, own))
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LocalLearningError(
            f'backbone {type(backbone).__name__} does not run on images of shape {input_shape} '
            f'({first_line}): check its config, and its plugins, on the unwrapped model first'
        ) from error
    finally:
        backbone.train(training)
    return [
        Footprint(
            segment.name,
            channels=out.shape[1],
            stride=_stride(input_shape[1], out.shape[2]),
            saved_bytes=saved // 2,
            frozen=not any(p.requires_grad for p in segment.parameters(backbone)),
            pooled=level is not None and level.dim() == 2,
            output_bytes=made // 2,
        )
        for segment, (out, level, saved, made) in zip(segments, results)
    ]


def check_segments(backbone: nn.Module, unrolled: Unrolled) -> None:
    """Refuse segments that compute something else than the backbone itself.

    Both run on the same two random images, in training mode, with weights that no initialization
    to zero hides. Classes of OpenMMLab's packages are tested once and for all, those of users when
    they are built, unless they don't run at all on this device, or on images of 256×256.

    Args:
        backbone: The backbone; it is left as it was.
        unrolled: Its segments.

    Raises:
        LocalLearningError: Says which of the returned maps differs.
    """
    if type(backbone).__module__.partition('.')[0] in _TESTED:
        return
    segments, training = unrolled.segments, backbone.training
    name = f'{type(backbone).__name__} (of {type(backbone).__module__})'
    shape = unrolled.input_shape or (image_channels(backbone, segments[0]), 256, 256)
    trace = _Trace(backbone, segments, unrolled.as_map)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        device = next(backbone.parameters()).device
        images = torch.rand(2, *shape, device=device)
        if type(images) is not Tensor or images.is_meta:
            return  # Nothing is computed here, as in a simulation.
        weights = {name: p + 0.01 * torch.rand_like(p) for name, p in trace.named_parameters()}
        backbone.train()
        try:
            with mock.patch.object(nn.SyncBatchNorm, 'forward', _BatchNorm.forward):
                torch.manual_seed(0)
                whole = functional_call(trace, {**weights, **_copies(trace)}, (images, None))
                torch.manual_seed(0)
                results = functional_call(trace, {**weights, **_copies(trace)}, (images, set()))
        except Exception:  # A user's code; it was traced, and what else is wrong shows in training.
            return
        finally:
            backbone.train(training)
    levels = {
        segment.level: level
        for segment, (_, level, *_) in zip(segments, results)
        if segment.level is not None
    }
    ours = [levels[level] for level in sorted(levels)]
    whole = levels_of(whole)
    if len(whole) != len(ours):
        raise LocalLearningError(
            f'backbone {name} returns {len(whole)} maps, and its segments {len(ours)}: fix the '
            'function under @backbone_family that describes it'
        )
    for level, (one, other) in enumerate(zip(whole, ours)):
        if one.shape != other.shape or not torch.allclose(one, other, 1e-3, 1e-5, equal_nan=True):
            raise LocalLearningError(
                f'backbone {name} cannot be cut: run segment by segment, it returns another map '
                f'{level} than its forward does: fix the function under @backbone_family that '
                'describes it, or write one for this class'
            )


def levels_of(output: Any) -> Tuple[Tensor, ...]:
    """The maps that a backbone returns.

    Args:
        output: Its output: a tuple, a dict in the order of the levels, or one tensor.
    """
    if isinstance(output, Tensor):
        return (output,)
    return tuple(output.values() if isinstance(output, dict) else output)


def _copies(module: nn.Module) -> Dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def image_channels(backbone: nn.Module, stem: Segment) -> int:
    """Channels of the images that a backbone takes, as its first convolution tells them.

    Args:
        backbone: The backbone.
        stem: Its first segment.
    """
    found = []

    def read(convolution: nn.Conv2d, args: Tuple[Tensor, ...]) -> None:
        # Some stems move pixels to channels first.
        found.append(3 * convolution.in_channels // args[0].size(1))
        raise StopIteration

    handles = [
        module.register_forward_pre_hook(read)
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        like = next(backbone.parameters())
        stem.run(backbone, like.new_zeros(1, 3, 256, 256))
    except Exception:  # It is run for nothing but the number; faults show where it is traced.
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else 3


def _stride(image_height: int, map_height: int) -> Union[int, float]:
    stride = image_height / map_height
    return round(stride) if stride >= 1 else stride
