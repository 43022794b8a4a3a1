# RetinaNet-R34 on VOC 2007 by back-propagation.
_base_ = './retinanet_r50_bp.py'
model = dict(backbone=dict(depth=34), neck=dict(in_channels=[64, 128, 256, 512]))
