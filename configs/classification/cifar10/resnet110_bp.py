# ResNet-110 on CIFAR-10 by back-propagation.
_base_ = './resnet32_bp.py'
model = dict(backbone=dict(depth=110))
