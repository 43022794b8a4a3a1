# YOLOv1 on ResNet-34 on COCO by FBA, in 4 modules.
_base_ = './yolov1_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=34)), bbox_head=dict(in_channels=512))
