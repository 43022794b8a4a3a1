# The same with half of ResNet-34's channels.
_base_ = './retinanet_r18_bccd.py'
model = dict(backbone=dict(depth=34))
