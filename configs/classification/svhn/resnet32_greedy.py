# ResNet-32 on SVHN by Greedy, in 16 modules.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/greedy.py']
model = dict(backbone=dict(auxiliary=dict(_base_.method, _delete_=True)))
