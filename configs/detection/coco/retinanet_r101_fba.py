# RetinaNet-R101 on COCO by FBA, in 4 modules.
_base_ = './retinanet_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=101)))
