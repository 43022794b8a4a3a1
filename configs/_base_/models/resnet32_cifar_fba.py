# ResNet-32 in 16 modules. Each has a head of its own, a copy of the model's.
_base_ = ['./resnet32_cifar.py', '../local_learning.py']
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
