# ResNet-110: as ResNet-32, with 18 blocks per stage.
_base_ = './resnet32_cifar.py'
model = dict(backbone=dict(depth=110))
