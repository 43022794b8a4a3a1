"""The detector YOLOv1."""

from mmdet.models.detectors import SingleStageDetector
from mmengine.registry import MODELS


@MODELS.register_module()
class YOLOV1(SingleStageDetector):
    """Looks at an image once: a backbone, and one head that predicts boxes for a grid of cells.

    Source: Redmon et al., "You Only Look Once: Unified, Real-Time Object Detection", CVPR 2016. The
    arguments are those of mmdet's ``SingleStageDetector``; a neck is possible, and not needed.

    Example:
        >>> model = dict(
        ...     type='fba_mm.YOLOV1',
        ...     backbone=dict(type='ResNet', depth=34, out_indices=(3, ), norm_eval=False),
        ...     bbox_head=dict(type='fba_mm.YOLOV1Head', num_classes=20, in_channels=512),
        ...     test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5)))
    """
