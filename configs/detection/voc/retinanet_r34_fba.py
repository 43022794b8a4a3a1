# RetinaNet-R34 on VOC 2007 by FBA, in 17 modules.
_base_ = ['./retinanet_r34_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=17
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
