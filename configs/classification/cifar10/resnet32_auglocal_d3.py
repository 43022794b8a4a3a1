# ResNet-32 on CIFAR-10 by AugLocal with d = 3, in 16 - d modules.
_base_ = './resnet32_auglocal.py'
model = dict(backbone=dict(num_modules=[1] * 12 + [4], auxiliary=dict(max_depth=3)))
