# The demo's RetinaNet by local learning: the backbone in 4 modules, nothing else changed.
_base_ = ['./retinanet_r34_digits.py', '../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=4,
        auxiliary=dict(type='SLM', blocks_per_stage=0),
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
