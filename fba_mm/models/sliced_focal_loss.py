"""Focal loss that goes through the logits slice by slice, and keeps nothing but them."""

import math
from typing import Any, Callable, Iterable, Iterator, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..arguments import check_count, check_number
from ..errors import LocalLearningError
from ..value_range import check_range

# Per temporary. On the CPU a slice stays in the cache; elsewhere it must be worth its kernels.
_CPU_SLICE_BYTES = 1 << 20
_SLICE_BYTES = 16 << 20

_REDUCTIONS = ('none', 'mean', 'sum')

# softplus(x) is x from here on: in float64 too, where torch's own limit of 20 is too low.
_LINEAR_FROM = 40.0


@MODELS.register_module()
class SlicedFocalLoss(nn.Module):
    """mmdet's ``FocalLoss`` in the memory of the logits and their gradient.

    A dense detector has positions × anchors × classes logits, and focal loss (Lin et al., "Focal
    Loss for Dense Object Detection", ICCV 2017, equation 5) is a formula of a dozen operations on
    each. Autograd keeps most of their results until the backward pass: several times the logits,
    which are the largest tensor of a light head. Here the loss is computed for a slice of rows
    after the other, nothing but the arguments is kept, and the backward pass computes each slice
    again and writes its gradient to where it belongs.

    Values and gradients are those of ``FocalLoss`` up to rounding. Two things are better: half
    precision logits are computed in float32, which is also what the loss is returned in, and
    gradients stay finite for ``gamma < 1``.

    Args:
        use_sigmoid: Always true. Heads read from it that background has no logit: write it in
            their configs.
        gamma: Focusing exponent.
        alpha: Weight of the terms of objects; those of background have 1 - alpha.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``. Without reduction each term is a result, so
            that nothing is saved. Nor is it if the targets or weights require gradients.
        loss_weight: Factor of the loss.
        activated: Always false: the predictions are logits.
        slice_bytes: Memory of one temporary; about four exist at once. Unset, 1 MiB on the CPU
            and 16 MiB elsewhere.

    Raises:
        LocalLearningError: An argument has a value that this loss can't serve.

    Example:
        >>> loss = SlicedFocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25)
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> labels = torch.tensor([0, 3, 3, 2])            # 3 of 3 classes is background
        >>> round(loss(logits, labels, avg_factor=2).item(), 4)
        0.6931
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
        slice_bytes: Optional[int] = None,
    ):
        super().__init__()
        if use_sigmoid is not True:
            raise LocalLearningError(
                f'SlicedFocalLoss(use_sigmoid={use_sigmoid}): there is no focal loss on a softmax '
                'here, set use_sigmoid=True'
            )
        if activated:
            raise LocalLearningError(
                f'SlicedFocalLoss(activated={activated}): it takes logits, give them without a '
                "sigmoid, or use type='mmdet.FocalLoss' for probabilities"
            )
        check_number('SlicedFocalLoss: gamma', gamma, least=0)
        check_number('SlicedFocalLoss: alpha', alpha)
        check_number('SlicedFocalLoss: loss_weight', loss_weight, least=0)
        if slice_bytes is not None:
            check_count('SlicedFocalLoss: slice_bytes', slice_bytes, fix=', or leave it unset')
        _check_reduction(reduction)
        self.use_sigmoid = use_sigmoid
        self.gamma = float(gamma)
        self.alpha = float(alpha)
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.activated = activated
        self.slice_bytes = slice_bytes

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[Union[float, Tensor]] = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        """The loss of logits.

        Args:
            pred: Logits, (N, C).
            target: Class indices (N,), where C is background, or shares of each class (N, C).
            weight: Factors of rows, (N,) or (N, 1), or of terms, (N, C) or (N * C,).
            avg_factor: What ``'mean'`` divides the sum by; unset, the number of terms.
            reduction_override: Takes the place of ``reduction``.

        Returns:
            A scalar, or (N, C) without reduction.

        Raises:
            LocalLearningError: Shapes don't fit each other, a class index is out of range, or
                ``avg_factor`` comes with ``'sum'``.
        """
        if reduction_override is not None:
            _check_reduction(reduction_override)
        reduction = reduction_override or self.reduction
        if avg_factor is not None and reduction == 'sum':
            raise LocalLearningError(
                "SlicedFocalLoss: avg_factor has no use with reduction='sum': leave it out, or "
                "set reduction='mean'"
            )
        _check_target(pred, target)
        weight = _broadcastable(weight, pred)
        if reduction == 'none':
            return self.loss_weight * _each(pred, target, weight, self.gamma, self.alpha)
        if any(t is not None and t.requires_grad for t in (target, weight)):
            total = _each(pred, target, weight, self.gamma, self.alpha).sum()
        else:
            slice_bytes = self.slice_bytes or (
                _CPU_SLICE_BYTES if pred.device.type == 'cpu' else _SLICE_BYTES
            )
            total = _SlicedSum.apply(pred, target, weight, self.gamma, self.alpha, slice_bytes)
        if reduction == 'mean':
            # As mmdet has it: a batch without objects may come with an avg_factor of 0.
            total = total / (
                pred.numel() if avg_factor is None else avg_factor + torch.finfo(torch.float32).eps
            )
        return self.loss_weight * total

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return (
            f'gamma={self.gamma}, alpha={self.alpha}, reduction={self.reduction!r}, '
            f'loss_weight={self.loss_weight}'
        )


class _SlicedSum(torch.autograd.Function):
    """Sum of all terms. Its backward pass computes each slice again."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        target: Tensor,
        weight: Optional[Tensor],
        gamma: float,
        alpha: float,
        slice_bytes: int,
    ) -> Tensor:
        ctx.save_for_backward(pred, target, weight)
        ctx.gamma, ctx.alpha, ctx.slice_bytes = gamma, alpha, slice_bytes
        total = pred.new_zeros((), dtype=_compute_dtype(pred))
        for _, logits, targets, weights in _slices(pred, target, weight, slice_bytes):
            if _are_labels(targets, logits):
                terms = _label_terms(_low, logits, targets, gamma, alpha)
                if weights is not None:
                    terms.mul_(weights)
            else:
                terms = _each(logits, targets, weights, gamma, alpha)
            total += terms.sum()
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():
            # torch's once_differentiable would let a gradient penalty pass, as a constant.
            raise LocalLearningError(
                'SlicedFocalLoss has no second derivative, which create_graph=True asks for: use '
                "type='mmdet.FocalLoss'"
            )
        pred, target, weight = ctx.saved_tensors
        grad = torch.empty_like(pred)
        for rows, logits, targets, weights in _slices(pred, target, weight, ctx.slice_bytes):
            # Scaled before it is rounded to the dtype of pred.
            scale = grad_output if weights is None else weights * grad_output
            if _are_labels(targets, logits):
                slope = _label_terms(_low_slope, logits, targets, ctx.gamma, ctx.alpha)
            else:
                slope = _share_slope(logits, targets, ctx.gamma, ctx.alpha)
            grad[rows] = slope.mul_(scale)
        return grad, None, None, None, None, None


def _slices(
    pred: Tensor, target: Tensor, weight: Optional[Tensor], slice_bytes: int
) -> Iterator[Tuple[slice, Tensor, Tensor, Optional[Tensor]]]:
    """(rows, logits to compute with, targets, weights) of one slice after the other."""
    dtype = _compute_dtype(pred)
    row_bytes = math.prod(pred.shape[1:]) * torch.finfo(dtype).bits // 8
    step = max(1, slice_bytes // max(1, row_bytes))
    for start in starts_of_slices(len(pred), step):
        rows = slice(start, start + step)
        yield (rows, pred[rows].to(dtype), target[rows], None if weight is None else weight[rows])


def starts_of_slices(rows: int, step: int) -> Iterable[int]:
    """The first row of each slice; a simulation may answer with some of them alone."""
    return range(0, rows, step)


def _compute_dtype(pred: Tensor) -> torch.dtype:
    return torch.promote_types(pred.dtype, torch.float32)


def _are_labels(target: Tensor, pred: Tensor) -> bool:
    return target.dim() != pred.dim()


def _low(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma * -log(1 - p): what a logit costs that should be low."""
    return F.softplus(logits, threshold=_LINEAR_FROM).mul_(logits.sigmoid().pow_(gamma))


def _low_slope(logits: Tensor, gamma: float) -> Tensor:
    """Derivative of :func:`_low`, p^gamma * (gamma * (1 - p) * -log(1 - p) + p)."""
    p = logits.sigmoid()
    slope = F.softplus(logits, threshold=_LINEAR_FROM)
    slope.mul_((1 - p).mul_(gamma)).add_(p)
    return slope.mul_(p.pow_(gamma))


def _label_terms(
    term: Callable, logits: Tensor, labels: Tensor, gamma: float, alpha: float
) -> Tensor:
    """:func:`_low` or :func:`_low_slope` of every logit, (N, C), for class indices (N,).

    All classes count as absent first. Then the one logit of a row that shall be high is put
    right, so that no one-hot target is needed.
    """
    terms = term(logits, gamma).mul_(1 - alpha)
    is_object = (labels < logits.size(1))[:, None]
    column = labels.long().clamp(max=logits.size(1) - 1)[:, None]
    # A logit that should be high costs what its negative costs that should be low.
    sign = 1 if term is _low else -1
    high = term(-logits.gather(1, column), gamma).mul_(sign * alpha)
    return terms.scatter_(1, column, torch.where(is_object, high, terms.gather(1, column)))


def _each(
    pred: Tensor, target: Tensor, weight: Optional[Tensor], gamma: float, alpha: float
) -> Tensor:
    """Every term, by operations that autograd knows."""
    pred = pred.to(_compute_dtype(pred))
    if _are_labels(target, pred):
        target = F.one_hot(target.long(), pred.size(1) + 1)[:, :-1]
    target = target.to(pred.dtype)
    miss = pred.sigmoid() * (1 - target) + (-pred).sigmoid() * target
    # A miss of exactly 0 has no finite power below 0, which the derivative asks for.
    focus = miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma
    terms = F.binary_cross_entropy_with_logits(pred, target, reduction='none')
    terms = terms * focus * (alpha * target + (1 - alpha) * (1 - target))
    return terms if weight is None else terms * weight


def _share_slope(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Derivative of every term of :func:`_each`, for shares of each class."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        total = _each(logits, target, None, gamma, alpha).sum()
    return torch.autograd.grad(total, logits)[0]


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise LocalLearningError(
            f'SlicedFocalLoss: reduction={reduction!r} is none of {", ".join(_REDUCTIONS)}: '
            'give one of them'
        )


def _check_target(pred: Tensor, target: Tensor) -> None:
    if target.shape == pred.shape and pred.dim():
        return
    shapes = f'targets {tuple(target.shape)} for logits {tuple(pred.shape)}'
    if target.dim() == pred.dim() or pred.dim() != 2 or target.shape != pred.shape[:1]:
        raise LocalLearningError(
            f'SlicedFocalLoss got {shapes}: give class indices (N,) or shares (N, C) for (N, C)'
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise LocalLearningError(
            f'SlicedFocalLoss got {shapes} as {target.dtype}: give class indices as integers'
        )
    num_classes = pred.size(1)
    check_range(
        target,
        0,
        num_classes,
        lambda label: (
            f'SlicedFocalLoss got the class index {label}, but there are {num_classes} logits per '
            f'row, and {num_classes} is background: set num_classes of the head to that of the '
            'data set'
        ),
    )


def _broadcastable(weight: Optional[Tensor], pred: Tensor) -> Optional[Tensor]:
    """The weights in the shapes that mmdet allows, as (N, 1) or in the shape of the logits."""
    if weight is None or weight.shape == pred.shape:
        return weight
    if pred.dim() == 2 and weight.dim():
        if weight.numel() == len(pred) == weight.size(0):
            return weight.reshape(-1, 1)
        if weight.numel() == pred.numel() and weight.size(0) != len(pred):
            return weight.reshape(pred.shape)
    raise LocalLearningError(
        f'SlicedFocalLoss got weights {tuple(weight.shape)} for logits {tuple(pred.shape)}: give '
        '(N,), (N, 1), (N, C) or (N * C,)'
    )
