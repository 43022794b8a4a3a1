# ViT-Tiny on ImageNet by MAN++ as released: 4 modules of 3 layers, and behind each copies of the
# next two layers (the first one learned and averaged), norm, class token and classifier.
_base_ = ['./vit_tiny_bp.py', '../../_base_/local_learning.py', '../../_base_/methods/manpp.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=[4, 3, 3, 3],  # the stem counts as one
        auxiliary=dict(_base_.method, num_classes=1000, blocks=2, host=dict(type='Readout')),
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
