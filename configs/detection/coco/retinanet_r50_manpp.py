# RetinaNet-R50 on COCO by MAN++, cut by stages: the modules predict P3, P4, and P5 to P7.
_base_ = './retinanet_r50_fba.py'
model = dict(
    backbone=dict(
        num_modules='stages',
        auxiliary=dict(type='MAN++', host=dict(type='OwnLevels', num_classes=80)),
    )
)
