# PSPNet-R50-D8 on ADE20K by FBA, in 4 modules; by back-propagation, it is mmseg's own config.
_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', '../../_base_/fba.py']
model = dict(
    backbone=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
