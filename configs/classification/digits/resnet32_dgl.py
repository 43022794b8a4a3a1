# ResNet-32 on handwritten digits by DGL, in 16 modules.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/dgl.py']
model = dict(backbone=dict(auxiliary=dict(_base_.method, _delete_=True)))
