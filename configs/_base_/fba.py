# Local learning with FBA. Inherit it beside a stock config, then wrap the backbone and take the
# optimizer wrapper that accepts local losses:
#
#     _base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/fba.py']
#     model = dict(backbone=dict(_delete_=True, type='LocalBackbone',
#                                backbone=_base_.model.backbone, num_modules=4,
#                                auxiliary=dict(type='SLM', head=dict(
#                                    type='LightRetinaNet', num_classes=80))))
#     optim_wrapper = dict(type='LocalOptimWrapper')
#
# Where optimizer settings for 'backbone' stand in paramwise_cfg.custom_keys, as DETR's do, add
# constructor='LocalOptimWrapperConstructor' to it: auxiliary networks count as the head then.
_base_ = ['./imports.py', './local_learning.py']
