# RetinaNet-R101 on COCO by FBA, in 4 modules.
_base_ = ['./retinanet_r101_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
