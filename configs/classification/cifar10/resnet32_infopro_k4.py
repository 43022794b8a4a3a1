# ResNet-32 on CIFAR-10 by InfoPro, in 4 modules, cut where its authors cut them.
_base_ = './resnet32_infopro.py'
model = dict(backbone=dict(num_modules=['layer1.2', 'layer2.1', 'layer3.0']))
