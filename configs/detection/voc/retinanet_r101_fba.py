# RetinaNet-R101 on VOC 2007 by FBA, in 34 modules.
_base_ = ['./retinanet_r101_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=34
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
