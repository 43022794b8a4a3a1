"""Focal losses in the place of mmcv's compiled ops of the same names.

Each op fills the buffer that mmcv hands over. Logits of a dense detector are the largest tensors of
a training step, so the sigmoid ops go through them in slices of rows, and treat every class as
"not this one" first: the one logit per row that belongs to the target is put right afterwards, and
no one-hot target is ever built.
"""

import torch
import torch.nn.functional as F

from ..value_range import check_range

__all__ = [
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]

# Elements per slice: 8 MB per temporary in float32, enough to keep a GPU busy.
_SLICE = 1 << 21


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Sigmoid focal loss (Lin et al., ICCV 2017) of every logit, without reduction.

    Unlike the compiled op, which takes log(1 - sigmoid(x)), this one keeps its precision for
    confident logits (it stays linear beyond ±17 in float32, like binary cross-entropy on logits).

    Args:
        input (Tensor): (N, C) logits.
        target (Tensor): (N,) int64 class indices; C, or anything negative, is background.
        weight (Tensor): (C,) weight of a row by its target class, or empty. Background rows, for
            which the compiled op reads past its end, count 1.
        output (Tensor): (N, C) buffer that receives the loss.
        gamma (float): Focusing exponent.
        alpha (float): Share of the positive term; the negative one has 1 - alpha.

    Raises:
        LocalLearningError: A target is greater than C.
    """
    _sigmoid_focal(_focal_loss, input, target, weight, output, gamma, alpha)


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    """Derivative of each loss of :func:`sigmoid_focal_loss_forward` by its logit."""
    _sigmoid_focal(_focal_loss_derivative, input, target, weight, grad_input, gamma, alpha)


def _sigmoid_focal(term, input, target, weight, result, gamma, alpha):
    num_rows, num_classes = input.shape
    if not result.numel():
        return
    check_range(
        target,
        torch.iinfo(target.dtype).min,
        num_classes,
        lambda label: (
            f'focal loss got the class label {label} with {num_classes} logits per row (0 to '
            f'{num_classes - 1} are classes, {num_classes} is background): set num_classes of the '
            'head to the number of classes of the data set'
        ),
    )
    step = max(1, _SLICE // num_classes)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        logits, labels = input[rows], target[rows]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        value = term(logits, gamma).mul_(1 - alpha)

        is_object = (labels >= 0) & (labels < num_classes)
        column = labels.clamp(0, num_classes - 1)[:, None]
        # The positive term of a logit is the negative term of the same logit with its sign flipped.
        sign = 1 if term is _focal_loss else -1
        positive = term(-logits.gather(1, column), gamma).mul_(sign * alpha)
        negative = value.gather(1, column)
        value.scatter_(1, column, torch.where(is_object[:, None], positive, negative))
        if weight.numel():
            row_weight = torch.where(is_object, weight[column[:, 0]].to(value.dtype), 1)
            value.mul_(row_weight[:, None])
        result[rows] = value


def _focal_loss(logits, gamma):
    """p^gamma * -log(1 - p), the loss of a logit that should be low."""
    return F.logsigmoid(-logits).neg_().mul_(logits.sigmoid().pow_(gamma))


def _focal_loss_derivative(logits, gamma):
    """p^gamma * (gamma * (1 - p) * -log(1 - p) + p)."""
    probability = logits.sigmoid()
    slope = F.logsigmoid(-logits).mul_(probability - 1).mul_(gamma).add_(probability)
    return slope.mul_(probability.pow_(gamma))


def softmax_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Focal loss of the target class under a softmax, without reduction.

    Args:
        input (Tensor): (N, C) probabilities: mmcv hands the softmax over, not the logits.
        target (Tensor): (N,) int64 class indices; rows with a negative one count nothing.
        weight (Tensor): (C,) weight of a row by its target class, or empty.
        output (Tensor): (N,) buffer that receives the loss.
        gamma (float): Focusing exponent.
        alpha (float): Factor of every row.
    """
    probability, log_probability, row_weight = _softmax_rows(input, target, weight)
    output.copy_((1 - probability).pow_(gamma) * log_probability * row_weight * -alpha)


def softmax_focal_loss_backward(input, target, weight, buff, grad_input, gamma, alpha):
    """Derivative of :func:`softmax_focal_loss_forward` by the logits under the softmax.

    ``buff`` (N,) receives the factor that a row's logits have in common.
    """
    probability, log_probability, row_weight = _softmax_rows(input, target, weight)
    miss = 1 - probability
    factor = -miss.pow(gamma)
    if gamma:
        # A miss of exactly 0 has no finite power below 0, and the logarithm beside it is 0 anyway.
        miss = miss.clamp(min=torch.finfo(miss.dtype).tiny)
        factor += gamma * miss.pow_(gamma - 1) * probability * log_probability
    factor *= row_weight * alpha
    buff.copy_(factor)
    grad_input.copy_(input).mul_(-factor[:, None])
    column = target.clamp(min=0)[:, None]
    grad_input.scatter_add_(1, column, factor[:, None].to(grad_input.dtype))


def _softmax_rows(input, target, weight):
    """Probability of the target, its logarithm, and the weight of each row (0: ignored)."""
    column = target.clamp(min=0)
    probability = input.gather(1, column[:, None])[:, 0]
    probability = probability.to(torch.promote_types(probability.dtype, torch.float32))
    row_weight = (target >= 0).to(probability.dtype)
    if weight.numel():
        row_weight *= weight[column]
    log_probability = probability.clamp(min=torch.finfo(torch.float32).tiny).log()
    return probability, log_probability, row_weight
