# YOLOv1 on ResNet-101 on COCO by back-propagation.
_base_ = [
    '../../_base_/models/yolov1_r101.py',
    '../../_base_/datasets/coco_448.py',
    '../../_base_/schedules/local_90e.py',
    '../../_base_/detection_runtime.py',
]
