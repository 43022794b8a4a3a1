# ResNet-101 on ImageNet by FBA, in 4 modules; other numbers of GPUs: --auto-scale-lr.
_base_ = ['./resnet101_bp.py', '../../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=4,
        auxiliary=dict(
            type='SLM',
            head=dict(type='ImageClassifier', neck=_base_.model.neck, head=_base_.model.head),
        ),
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
