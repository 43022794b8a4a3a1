"""YOLOv1: detector, head, targets and loss (Redmon et al., "You Only Look Once", CVPR 2016).

Importing this package imports mmdet, which :mod:`fba_mm` itself does not: MMEngine does so for
configs that name the detector with its prefix, ``type='fba_mm.YOLOV1'``.
"""

from .grid_targets import GridTargets, grid_targets
from .yolov1 import YOLOV1
from .yolov1_head import YOLOV1Head
from .yolov1_loss import YOLOV1Loss

__all__ = ['GridTargets', 'YOLOV1', 'YOLOV1Head', 'YOLOV1Loss', 'grid_targets']
