# YOLOv1 on ResNet-152 on VOC 2007 by back-propagation.
_base_ = './yolov1_r50_bp.py'
model = dict(backbone=dict(depth=152))
