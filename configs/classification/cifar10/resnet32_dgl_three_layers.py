# ResNet-32 on CIFAR-10 by DGL with the three hidden layers of its authors' own code, in 16 modules.
_base_ = './resnet32_dgl.py'
model = dict(backbone=dict(auxiliary=dict(hidden_layers=3, hidden_bias=True)))
