# ResNet-110 on CIFAR-10 by DGL, in 55 modules.
_base_ = ['./resnet110_fba.py', '../../_base_/methods/dgl.py']
model = dict(backbone=dict(auxiliary=dict(_base_.method, _delete_=True)))
