# YOLOv1 on ResNet-101 on COCO by back-propagation.
_base_ = './yolov1_r50_bp.py'
model = dict(backbone=dict(depth=101))
