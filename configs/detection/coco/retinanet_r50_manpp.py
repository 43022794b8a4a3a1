# RetinaNet-R50 on COCO by MAN++, cut by stages: the modules predict P3, P4, and P5 to P7.
_base_ = ['./retinanet_r50_manpp_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules='stages',
        auxiliary=dict(type='MAN++', host=dict(type='OwnLevels', num_classes=80)),
    )
)
# One norm for all modules' gradients.
optim_wrapper = dict(type='LocalOptimWrapper', apply='end')
