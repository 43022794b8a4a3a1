# With a light neck and head for each module.
_base_ = '../retinanet_r34_fba.py'
model = dict(
    backbone=dict(
        auxiliary=dict(type='SLM', channels=64, head=dict(type='LightRetinaNet', num_classes=80))
    )
)
