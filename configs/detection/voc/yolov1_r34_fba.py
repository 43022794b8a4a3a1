# YOLOv1 on ResNet-34 on VOC 2007 by FBA, in 17 modules.
_base_ = './yolov1_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=34)), bbox_head=dict(in_channels=512))
