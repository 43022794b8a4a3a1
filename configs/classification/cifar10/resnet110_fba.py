# ResNet-110 on CIFAR-10 by FBA, in 55 modules.
_base_ = './resnet32_fba.py'
model = dict(backbone=dict(backbone=dict(depth=110), num_modules=55))
