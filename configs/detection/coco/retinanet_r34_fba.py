# RetinaNet-R34 on COCO by FBA, in 4 modules.
_base_ = './retinanet_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=34)), neck=dict(in_channels=[64, 128, 256, 512]))
