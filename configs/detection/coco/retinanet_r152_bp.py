# RetinaNet-R152 on COCO by back-propagation.
_base_ = './retinanet_r50_bp.py'
model = dict(backbone=dict(depth=152))
