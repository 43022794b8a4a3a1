# RetinaNet-R34, from scratch.
_base_ = './retinanet_r50.py'
model = dict(backbone=dict(depth=34), neck=dict(in_channels=[64, 128, 256, 512]))
