# RetinaNet-R101, from scratch.
_base_ = './retinanet_r50.py'
model = dict(backbone=dict(depth=101))
