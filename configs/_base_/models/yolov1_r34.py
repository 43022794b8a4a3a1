# YOLOv1 on ResNet-34, from scratch.
_base_ = './yolov1_r50.py'
model = dict(backbone=dict(depth=34), bbox_head=dict(in_channels=512))
