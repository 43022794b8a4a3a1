"""A neck and head that see a few images at a time, with the gradients of all.

What a dense head keeps for its backward pass grows with the images it sees at once. The backbone
needs them together, for batch normalization; neck and head mostly don't. So the head gets a slice
of the backbone's features, its gradients are computed at once, and the next slice follows. The
gradients on the features are collected, and flow into the backbone when the last slice is done.
Nothing is computed twice, and the gradients are those of the whole batch.
"""

from typing import Any, Callable, Container, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..method_owner import is_method_of
from .assigned_targets import is_anchor_based
from .task_loss import Losses, StubbableBackbone, map_losses

# Losses that are sums over positions. GHM's, for one, are not: they weigh by a histogram.
_SUMS = frozenset(
    [
        'BoundedIoULoss',
        'CIoULoss',
        'CrossEntropyLoss',
        'DIoULoss',
        'EIoULoss',
        'FocalLoss',
        'GIoULoss',
        'IoULoss',
        'L1Loss',
        'MSELoss',
        'SlicedFocalLoss',
        'SmoothL1Loss',
    ]
)
_PACKAGES = ('mmdet', 'fba_mm')
# Packages whose dense heads and necks have no state but in the losses left out above.
_STATELESS = ('fba_mm', 'mmcv', 'mmdet', 'mmengine', 'torch')


def can_be_split(model: nn.Module, source: StubbableBackbone) -> bool:
    """Whether the losses of a model on slices of a batch sum to those on the whole batch.

    Args:
        model: A model, whose ``loss`` is meant.
        source: Its backbone.
    """
    # Its loss() hands its images to the backbone as they are.
    if not all(
        is_method_of(model, method, _PACKAGES, ('SingleStageDetector',))
        for method in ('loss', 'extract_feat')
    ):
        return False
    parts = {name: child for name, child in model.named_children() if child is not source}
    trained = {name for name, child in parts.items() if any(True for _ in child.parameters())}
    if not trained <= {'neck', 'bbox_head'}:
        return False
    if not is_image_mean(model) and not _is_sum_over_anchors(model.bbox_head):
        return False
    return not any(
        isinstance(m, _BatchNorm) and m.training
        for child in parts.values()
        for m in child.modules()
    )


def is_known(model: nn.Module, source: StubbableBackbone) -> bool:
    """Whether a model's neck and head are of classes that keep nothing from batch to batch.

    A user's own class may: with fewer images at once it would keep something else.

    Args:
        model: A model for which :func:`can_be_split` holds.
        source: Its backbone.
    """
    return all(
        type(m).__module__.partition('.')[0] in _STATELESS
        for child in model.children()
        if child is not source
        for m in child.modules()
    )


def _is_sum_over_anchors(head: nn.Module) -> bool:
    losses = [child for name, child in head.named_children() if name.startswith('loss_')]
    return is_anchor_based(head) and all(_is_of(type(loss), _SUMS) for loss in losses)


def _is_of(cls: type, names: Container[str]) -> bool:
    """Whether a class is mmdet's or this package's of one of these names, not a user's namesake."""
    return cls.__name__ in names and cls.__module__.partition('.')[0] in _PACKAGES


def is_image_mean(model: nn.Module) -> bool:
    """Whether a model's loss is the mean of a loss of each image, as its head says of itself.

    Args:
        model: A model; one whose head has ``loss_is_image_mean = True`` counts.
    """
    return getattr(getattr(model, 'bbox_head', None), 'loss_is_image_mean', False) is True


class _LastImages(torch.autograd.Function):
    """The features of the last images; their gradient returns together with all others'."""

    @staticmethod
    def forward(ctx: Any, start: int, gradients: List[Tensor], *features: Tensor) -> tuple:
        ctx.start, ctx.gradients = start, gradients
        return tuple(feature[start:].detach() for feature in features)

    @staticmethod
    def backward(ctx: Any, *last: Tensor) -> tuple:
        for gradient, part in zip(ctx.gradients, last):
            gradient[ctx.start :] = part
        return (None, None, *ctx.gradients)


def slices_of(num_images: int, size: Optional[int]) -> List[slice]:
    """Cut a batch into slices.

    Args:
        num_images: Images of the batch.
        size: Images of a slice; None for all.
    """
    size = size or num_images
    return [slice(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def feed(
    features: Sequence[Tensor],
    images: Sequence[slice],
    loss_of: Callable[[Tuple[Tensor, ...], slice], Losses],
    accumulate: Callable[[Losses], None],
) -> Tuple[Tuple[Tensor, ...], Losses]:
    """Compute the losses of all slices but the last, and their gradients.

    Args:
        features: The whole batch's, (N, C, H, W) each, attached to a module's graph or not; none
            where the backbone, too, runs on one slice after the other.
        images: Slices of the batch, from :func:`slices_of`.
        loss_of: ``loss_of(features, images)``: the losses of one slice.
        accumulate: Computes the gradients of losses, now, and adds them up.

    Returns:
        The last slice's features, attached in such a way that their gradient takes along those of
        all other slices; and the sums of the other slices' losses, which have no gradient.
    """
    attached = [i for i, feature in enumerate(features) if feature.requires_grad]
    gradients = [torch.empty_like(features[i]) for i in attached]
    fed: Losses = {}
    for part in images[:-1]:
        leaves = tuple(f[part].detach().requires_grad_(f.requires_grad) for f in features)
        losses = loss_of(leaves, part)
        accumulate(losses)
        for gradient, i in zip(gradients, attached):
            gradient[part] = 0 if leaves[i].grad is None else leaves[i].grad
        fed = add_losses(map_losses(losses, Tensor.detach), fed)
    start = images[-1].start
    rest = [feature[start:] for feature in features]
    if attached:
        last = _LastImages.apply(start, gradients, *(features[i] for i in attached))
        for i, feature in zip(attached, last):
            rest[i] = feature
    return tuple(rest), fed


def add_losses(losses: Losses, others: Losses) -> Losses:
    """Add losses of the same names, level by level; what isn't a loss is taken from the first.

    Args:
        losses: Of some images.
        others: Of other images; may be empty.
    """
    total = dict(losses)
    for name, other in others.items():
        if 'loss' not in name:
            continue
        own = total[name]
        total[name] = (
            [a + b for a, b in zip(own, other)] if isinstance(own, (list, tuple)) else own + other
        )
    return total
