# YOLOv1 on ResNet-101, from scratch.
_base_ = './yolov1_r50.py'
model = dict(backbone=dict(depth=101))
