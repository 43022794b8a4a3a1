# RetinaNet-R101 on VOC 2007 by FBA, in 34 modules.
_base_ = './retinanet_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=101), num_modules=34))
