# By the current paper: a block of the module's own stage, a light neck and head, and the bank's
# maps.
_base_ = '../retinanet_r34_fba.py'
model = dict(
    backbone=dict(
        auxiliary=dict(type='StageTail', head=dict(type='LightRetinaNet', num_classes=80))
    )
)
