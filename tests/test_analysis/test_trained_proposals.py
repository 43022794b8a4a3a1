"""Proposals as those of a trained detector."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import bbox_overlaps

from fba_mm.analysis.trained_proposals import trained_proposals


@pytest.mark.parametrize('samples', [True, False])
def test_a_stage_of_a_cascade_hands_on_boxes_that_hit(samples):
    objects = torch.tensor([[10.0, 10.0, 30.0, 40.0], [50.0, 20.0, 90.0, 60.0]])
    far = torch.tensor([100.0, 100.0, 110.0, 110.0]).repeat(16, 1)
    head = BBoxHead(num_classes=3, in_channels=1, roi_feat_size=1, reg_class_agnostic=True)
    # Those of Sparse R-CNN have no objects.
    sampled = SimpleNamespace(pos_is_gt=torch.zeros(4), pos_gt_bboxes=objects[[0, 0, 1, 0]])
    if not samples:
        del sampled.pos_gt_bboxes
    results = dict(
        rois=torch.cat([torch.zeros(16, 1), far], 1),
        bbox_targets=(torch.zeros(16, dtype=torch.long),),
        cls_score=torch.zeros(16, 4),
        bbox_pred=torch.zeros(16, 4),
    )

    def hits() -> int:
        (found,) = head.refine_bboxes([sampled], results, [dict(img_shape=(128, 128))])
        return int((bbox_overlaps(found.bboxes, objects).max(1)[0] > 0.7).sum())

    assert hits() == 0
    with trained_proposals():
        assert hits() == (8 if samples else 0)
    assert hits() == 0
