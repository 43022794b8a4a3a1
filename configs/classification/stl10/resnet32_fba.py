# ResNet-32 on STL-10 by FBA, in 16 modules.
_base_ = ['./resnet32_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=16,
        auxiliary=dict(
            type='SLM',
            head=dict(type='ImageClassifier', neck=_base_.model.neck, head=_base_.model.head),
        ),
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
