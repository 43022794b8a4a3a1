"""Stock losses and heads whose loss is computed slice by slice, in the memory of one slice."""

import math
from functools import lru_cache
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..compat.torch_versions import autocast_dtype, is_autocast_enabled
from ..errors import LocalLearningError
from ..tasks.segmentation import has_plain_loss
from .sliced_focal_loss import SlicedFocalLoss

# Of one temporary. On the CPU a slice stays in the cache; elsewhere it must be worth its kernels.
_CPU_SLICE_BYTES = 1 << 20
_SLICE_BYTES = 16 << 20
# RoIs of a slice.
_ROIS = 32
# Of masks of the image's size, for the RoIs whose targets are made at once.
_MASK_BYTES = 32 << 20


@MODELS.register_module(name='InSlices')
def in_slices(of: Union[str, type], **kwargs: Any) -> nn.Module:
    """A stock loss or decode head that computes its loss in slices.

    Dense predictions have positions × classes logits, and the formula of a loss makes several
    tensors of that size, which autograd keeps. Here they are made for one slice after the other,
    and once more for the backward pass. Values and gradients are the stock module's up to the order
    of sums, and so are its parameters and their names.

    - mmdet's ``FocalLoss``, ``QualityFocalLoss`` and ``VarifocalLoss``: some positions at a time.
      Without a reduction to one number, which some heads ask for, they are the stock ones.
    - mmseg's decode heads with the loss of ``BaseDecodeHead`` on softmax cross entropy: the logits
      are enlarged to the size of the labels, classified and compared some rows at a time.
    - mmdet's ``FCNMaskHead``: some RoIs at a time go through its convolutions, whose maps for all
      are the largest tensors of a Mask R-CNN. They are run once more for it. Targets, too, are cut
      from the objects' masks some RoIs at a time: mmdet makes a copy of the whole image's mask for
      each of them.

    :func:`fba_mm.localize.sliced` puts it into configs.

    Args:
        of: Type of the stock module, with its scope as in ``'mmdet.FocalLoss'``, or in that of the
            config.
        **kwargs: The stock module's arguments.

    Returns:
        A module of a subclass of the stock one's class, or a :class:`SlicedFocalLoss`.

    Raises:
        LocalLearningError: The module isn't one of these, or its settings don't allow for slices.

    Example:
        >>> loss_cls = dict(type='InSlices', of='QualityFocalLoss', beta=2.0)
        >>> decode_head = dict(type='InSlices', of='FCNHead', in_channels=2048, num_classes=19)
    """
    module = MODELS.build(dict(kwargs, type=of))
    owner = type(module)
    package = owner.__module__.partition('.')[0]
    if (
        (package, owner.__name__) == ('mmdet', 'FocalLoss')
        and module.use_sigmoid
        and not getattr(module, 'activated', False)
    ):
        return SlicedFocalLoss(**kwargs)
    if (package, owner.__name__) in (('mmdet', 'QualityFocalLoss'), ('mmdet', 'VarifocalLoss')):
        module.__class__ = _subclass(_SlicedRows, owner)
        return module
    if (package, owner.__name__) == ('mmdet', 'FCNMaskHead') and not any(
        isinstance(m, _BatchNorm) for m in module.modules()
    ):
        module.__class__ = _subclass(_SlicedRoIs, owner)
        return module
    if package == 'mmseg' and has_plain_loss(module):
        module.__class__ = _subclass(_StripedDecodeHead, owner)
        return module
    raise LocalLearningError(
        f'InSlices: {of} with these settings has no loss that can be computed in slices: set '
        f'type={of!r} and leave "of" out'
    )


@lru_cache(maxsize=None)
def _subclass(behaviour: type, stock: type) -> type:
    return type(f'Sliced{stock.__name__}', (behaviour, stock), {})


def _slice_bytes(tensor: Tensor) -> int:
    return _CPU_SLICE_BYTES if tensor.device.type == 'cpu' else _SLICE_BYTES


class _SlicedRoIs:
    """Of a head that looks at each RoI by itself: some RoIs at a time."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(_ROIS)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return super().forward(x)
        stock = super().forward
        # They draw nothing.
        return torch.cat(
            [
                checkpoint(stock, part, use_reentrant=False, preserve_rng_state=False)
                for part in parts
            ]
        )

    def get_targets(
        self, sampling_results: list, batch_gt_instances: list, rcnn_train_cfg: dict
    ) -> Tensor:
        from mmdet.structures.mask import BitmapMasks, mask_target

        targets = []
        for result, objects in zip(sampling_results, batch_gt_instances):
            masks, of_object = objects.masks, result.pos_assigned_gt_inds
            size = max(_MASK_BYTES // (4 * max(masks.height * masks.width, 1)), 1)
            if not isinstance(masks, BitmapMasks) or len(of_object) <= size:
                targets.append(
                    mask_target([result.pos_priors], [of_object], [masks], rcnn_train_cfg)
                )
                continue
            # By objects, so that each mask goes to the device about once.
            order = of_object.argsort()
            found = []
            for rows in order.split(size):
                needed, which = of_object[rows].unique(return_inverse=True)
                own = masks[needed.cpu().numpy()]
                found.append(mask_target([result.pos_priors[rows]], [which], [own], rcnn_train_cfg))
            targets.append(torch.cat(found)[order.argsort()])
        return torch.cat(targets)


class _SlicedRows:
    """Of a loss that is a sum over rows: some rows at a time."""

    def forward(
        self,
        pred: Tensor,
        target: Any,
        weight: Optional[Tensor] = None,
        avg_factor: Any = None,
        reduction_override: Optional[str] = None,
    ) -> Tensor:
        whole = super().forward
        targets = target if isinstance(target, tuple) else (target,)
        others = targets if weight is None else (*targets, weight)
        reduction = reduction_override or self.reduction
        is_sum = reduction == ('sum' if avg_factor is None else 'mean')
        if not is_sum or any(t.requires_grad or len(t) != len(pred) for t in others):
            return whole(pred, target, weight, avg_factor, reduction_override)

        def term(pred: Tensor, *others: Tensor) -> Tensor:
            rows = others[: len(targets)]
            return whole(
                pred,
                rows if isinstance(target, tuple) else rows[0],
                None if weight is None else others[-1],
                reduction_override='sum',
            )

        total = _SumOverRows.apply(term, pred, *others)
        if avg_factor is None:
            return total
        return total / (avg_factor + torch.finfo(torch.float32).eps)  # As mmdet has it.


class _SumOverRows(torch.autograd.Function):
    """Sum of a term over slices of rows. Its backward pass computes each slice again."""

    @staticmethod
    def forward(ctx: Any, term: Callable, pred: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(pred, *others)
        device = pred.device.type
        ctx.term = term
        ctx.autocast = dict(
            device_type=device, enabled=is_autocast_enabled(device), dtype=autocast_dtype(device)
        )
        return sum(term(*(t[rows] for t in (pred, *others))).float() for rows in _rows(pred))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        pred, *others = ctx.saved_tensors
        grad = torch.empty_like(pred)
        for rows in _rows(pred):
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                leaf = pred[rows].detach().requires_grad_()
                term = ctx.term(leaf, *(t[rows] for t in others))
            (grad[rows],) = torch.autograd.grad(term, leaf, grad_output.to(term.dtype))
        return (None, grad, *(None for _ in others))


def _rows(pred: Tensor) -> List[slice]:
    row_bytes = math.prod(pred.shape[1:]) * pred.element_size()
    step = max(1, _slice_bytes(pred) // max(1, row_bytes))
    return [slice(start, start + step) for start in range(0, max(len(pred), 1), step)]


class _StripedDecodeHead:
    """Of a decode head: logits of the labels' size are made for some rows at a time."""

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> Dict[str, Tensor]:
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        losses_decode = (
            self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
        )
        valid = int((labels != self.ignore_index).sum())
        # What each loss divides by, which a stripe alone doesn't tell.
        factors = [valid if loss.avg_non_ignore else labels.numel() for loss in losses_decode]

        def stripe(seg_logits: Tensor, rows: slice) -> List[Tensor]:
            logits = self._enlarged(seg_logits, labels.shape[1:], rows)
            with torch.no_grad():
                hits = logits.topk(1, dim=1)[1][:, 0] == labels[:, rows]
                hits = hits[labels[:, rows] != self.ignore_index].sum().float()
            return [
                hits,
                *(
                    loss(logits, labels[:, rows], avg_factor=factor, ignore_index=self.ignore_index)
                    for loss, factor in zip(losses_decode, factors)
                ),
            ]

        totals: List[Tensor] = []
        for rows in self._stripes(seg_logits, labels.shape[1:]):
            # The stripes draw nothing.
            found = checkpoint(
                stripe, seg_logits, rows, use_reentrant=False, preserve_rng_state=False
            )
            totals = [a + b for a, b in zip(totals, found)] if totals else list(found)
        losses: Dict[str, Tensor] = {}
        for loss, total in zip(losses_decode, totals[1:]):
            name = loss.loss_name
            losses[name] = losses[name] + total if name in losses else total
        eps = torch.finfo(torch.float32).eps
        losses['acc_seg'] = ((totals[0] + eps) * (100.0 / (valid + eps))).reshape(1)
        return losses

    @staticmethod
    def _stripes(seg_logits: Tensor, size: torch.Size) -> List[slice]:
        images, classes = seg_logits.shape[:2]
        step = _slice_bytes(seg_logits) // (images * classes * size[1] * seg_logits.element_size())
        return [
            slice(start, min(start + max(step, 1), size[0]))
            for start in range(0, size[0], max(step, 1))
        ]

    def _enlarged(self, seg_logits: Tensor, size: torch.Size, rows: slice) -> Tensor:
        """Some rows of what bilinear interpolation to a size makes of logits."""
        height = seg_logits.shape[2]
        position = torch.arange(
            rows.start, rows.stop, device=seg_logits.device, dtype=torch.float32
        )
        if self.align_corners:
            position = position * ((height - 1) / max(size[0] - 1, 1))
        else:
            position = ((position + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
        above = position.floor().long().clamp(max=height - 1)
        below = (above + 1).clamp(max=height - 1)
        share = (position - above).to(seg_logits.dtype)[:, None]
        stripe = seg_logits[:, :, above] * (1 - share) + seg_logits[:, :, below] * share
        if size[1] == seg_logits.shape[3]:
            return stripe
        return F.interpolate(
            stripe,
            size=(stripe.shape[2], size[1]),
            mode='bilinear',
            align_corners=self.align_corners,
        )
