# YOLOv1 on ResNet-152 on VOC 2007 by FBA, in 51 modules.
_base_ = ['./yolov1_r152_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=51
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
