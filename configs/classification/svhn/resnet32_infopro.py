# ResNet-32 on SVHN by InfoPro, in 16 modules.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/infopro.py']
model = dict(backbone=dict(auxiliary=dict(_base_.method, _delete_=True)))
