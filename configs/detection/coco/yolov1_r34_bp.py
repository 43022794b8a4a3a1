# YOLOv1 on ResNet-34 on COCO by back-propagation.
_base_ = './yolov1_r50_bp.py'
model = dict(backbone=dict(depth=34), bbox_head=dict(in_channels=512))
