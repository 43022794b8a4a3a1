# RetinaNet-R152 on VOC 2007 by FBA, in 51 modules.
_base_ = ['./retinanet_r152_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=51
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
