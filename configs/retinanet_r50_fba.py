# RetinaNet-R50 on COCO, from ImageNet weights as in MMDetection's own config, trained in 4 modules.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/fba.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=4,
        auxiliary=dict(type='SLM', head=dict(type='LightRetinaNet', num_classes=80)),
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
