# ResNet-32 on STL-10 by MAN++, in 16 modules.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/manpp.py']
model = dict(backbone=dict(auxiliary=dict(_base_.method, _delete_=True)))
