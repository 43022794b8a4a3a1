# ResNet-32 on CIFAR-10 by AugLocal with d = 1, in 16 - d modules.
_base_ = './resnet32_auglocal.py'
model = dict(backbone=dict(num_modules=[1] * 14 + [2], auxiliary=dict(max_depth=1)))
