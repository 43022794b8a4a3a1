# RetinaNet-R34 on VOC 2007 by FBA, in 17 modules.
_base_ = './retinanet_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=34)), neck=dict(in_channels=[64, 128, 256, 512]))
