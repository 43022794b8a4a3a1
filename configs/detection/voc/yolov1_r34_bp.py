# YOLOv1 on ResNet-34 on VOC 2007 by back-propagation.
_base_ = './yolov1_r50_bp.py'
model = dict(backbone=dict(depth=34), bbox_head=dict(in_channels=512))
