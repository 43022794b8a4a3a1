# DeepLabV3-R50-D8 on Cityscapes by FBA, in 4 modules; by back-propagation, it is mmseg's own
# config.
_base_ = [
    'mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    '../../_base_/fba.py',
]
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
