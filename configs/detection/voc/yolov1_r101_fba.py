# YOLOv1 on ResNet-101 on VOC 2007 by FBA, in 34 modules.
_base_ = './yolov1_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=101), num_modules=34))
