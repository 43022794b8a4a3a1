# RetinaNet-R152 on VOC 2007 by FBA, in 51 modules.
_base_ = './retinanet_r50_fba.py'
model = dict(backbone=dict(backbone=dict(depth=152), num_modules=51))
