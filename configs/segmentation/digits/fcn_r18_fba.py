# The small FCN on digits by local learning: the backbone in 4 modules, nothing else changed.
_base_ = ['./fcn_r18_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
