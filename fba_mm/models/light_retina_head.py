"""The head of a light detector; needs mmdet."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.task_modules import MaxIoUAssigner, PseudoSampler
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor


@MODELS.register_module()
class LightRetinaHead(RetinaHead):
    """mmdet's ``RetinaHead`` without its round trips to the host.

    Several such heads run in every iteration, and each is small: what counts is the number of
    operations, and on a GPU the number of times that the host waits for a value. mmdet's assigns
    targets by indices, one object after the other, and computes losses level by level. Here both
    are done for all objects, and for all levels, at once, by masks. The losses are the same.

    Assigners other than ``MaxIoUAssigner`` and samplers other than ``PseudoSampler`` assign as in
    mmdet.

    Args:
        **kwargs: Arguments of ``RetinaHead``.
    """

    # For AssignedTargets: targets depend on anchors and boxes alone, and losses are sums.
    is_sum_over_anchors = True

    def loss_by_feat(
        self,
        cls_scores: List[Tensor],
        bbox_preds: List[Tensor],
        batch_gt_instances: List[InstanceData],
        batch_img_metas: List[dict],
        batch_gt_instances_ignore: Optional[list] = None,
    ) -> Dict[str, Tensor]:
        """The losses, each one number for all levels.

        Args:
            cls_scores: Logits of each level, (N, anchors * classes, H, W).
            bbox_preds: Box deltas of each level, (N, anchors * 4, H, W).
            batch_gt_instances: Objects of each image.
            batch_img_metas: Of each image.
            batch_gt_instances_ignore: Of each image, what is neither object nor background.
        """
        sizes = [score.shape[-2:] for score in cls_scores]
        anchors, flags = self.get_anchors(sizes, batch_img_metas, device=cls_scores[0].device)
        *targets, avg_factor = self.get_targets(
            anchors,
            flags,
            batch_gt_instances,
            batch_img_metas,
            batch_gt_instances_ignore=batch_gt_instances_ignore,
        )
        labels, label_weights, bbox_targets, bbox_weights = (
            torch.cat(levels, 1).flatten(0, 1) for levels in targets
        )
        loss_cls = self.loss_cls(
            _joined(cls_scores, self.cls_out_channels), labels, label_weights, avg_factor=avg_factor
        )
        deltas = _joined(bbox_preds, self.bbox_coder.encode_size)
        if self.reg_decoded_bbox:
            boxes = torch.stack([get_box_tensor(cat_boxes(levels)) for levels in anchors])
            deltas = get_box_tensor(self.bbox_coder.decode(boxes.flatten(0, 1), deltas))
        loss_bbox = self.loss_bbox(deltas, bbox_targets, bbox_weights, avg_factor=avg_factor)
        return dict(loss_cls=loss_cls, loss_bbox=loss_bbox)

    def get_targets(
        self,
        anchor_list: List[List[Tensor]],
        valid_flag_list: List[List[Tensor]],
        batch_gt_instances: List[InstanceData],
        batch_img_metas: List[dict],
        batch_gt_instances_ignore: Optional[list] = None,
        **kwargs: Any,
    ) -> tuple:
        """Labels, their weights, deltas and their weights, of each level, and the divisor.

        Args:
            anchor_list: Of each image, the anchors of each level.
            valid_flag_list: Of each image, which anchors of each level lie on it.
            batch_gt_instances: Objects of each image.
            batch_img_metas: Of each image.
            batch_gt_instances_ignore: Of each image, what is neither object nor background.
            **kwargs: What mmdet's takes beside these.
        """
        if kwargs or not self._assigns_by_masks():
            return super().get_targets(
                anchor_list,
                valid_flag_list,
                batch_gt_instances,
                batch_img_metas,
                batch_gt_instances_ignore,
                **kwargs,
            )
        targets = [
            self._targets_of(torch.cat(anchors), torch.cat(flags), objects)
            for anchors, flags, objects in zip(anchor_list, valid_flag_list, batch_gt_instances)
        ]
        # PseudoSampler's: the objects' anchors, and one for an image that has none.
        divisor = torch.stack([weights[:, 0].sum().clamp(min=1) for *_, weights in targets]).sum()
        lengths = [len(anchors) for anchors in anchor_list[0]]
        return (*(list(torch.stack(kind).split(lengths, 1)) for kind in zip(*targets)), divisor)

    def _assigns_by_masks(self) -> bool:
        assigner = self.assigner
        return (
            type(assigner) is MaxIoUAssigner
            and type(self.sampler) is PseudoSampler
            and assigner.ignore_iof_thr <= 0
            and assigner.perm_repeat_gt_cfg is None
            and isinstance(assigner.neg_iou_thr, float)
            and assigner.gt_max_assign_all
            and assigner.match_low_quality
            and not self.reg_decoded_bbox
            and self.train_cfg['allowed_border'] < 0
            and self.train_cfg['pos_weight'] <= 0
        )

    def _targets_of(
        self, anchors: Tensor, valid: Tensor, objects: InstanceData
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """One image's (labels, label weights, deltas, delta weights), of all anchors."""
        boxes = get_box_tensor(objects.bboxes)
        count = len(boxes)
        if not count:
            labels = anchors.new_full((len(anchors),), self.num_classes, dtype=torch.long)
            zeros = torch.zeros_like(anchors)
            return labels, valid.to(anchors.dtype), zeros, zeros
        assigner = self.assigner
        # Anchors off the image belong to nobody.
        overlaps = assigner.iou_calculator(boxes, anchors).masked_fill(~valid, -1)
        best, index = overlaps.max(0)
        found = best >= assigner.pos_iou_thr
        neither = (best >= assigner.neg_iou_thr) & ~found
        # Every object gets the anchors that fit it best; of several objects, the last.
        of_object = overlaps.max(1, keepdim=True)[0]
        fits = (overlaps == of_object) & (of_object >= assigner.min_pos_iou)
        order = torch.arange(1, count + 1, dtype=torch.int32, device=anchors.device)[:, None]
        last = (fits * order).max(0)[0]
        index = torch.where(last > 0, last - 1, index)
        found = (found | (last > 0)) & valid
        labels = torch.where(found, objects.labels[index], self.num_classes)
        label_weights = (valid & (found | ~neither)).to(anchors.dtype)
        deltas = self.bbox_coder.encode(anchors, boxes[index])
        inside = found[:, None].expand_as(deltas)
        return labels, label_weights, torch.where(inside, deltas, 0.0), inside.to(anchors.dtype)


def _joined(levels: List[Tensor], channels: int) -> Tensor:
    """(N, anchors * channels, H, W) of each level → (N * all anchors, channels)."""
    rows = [x.permute(0, 2, 3, 1).reshape(len(x), -1, channels) for x in levels]
    return torch.cat(rows, 1).flatten(0, 1)
