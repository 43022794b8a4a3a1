# ResNet-32 on CIFAR-10 by AugLocal with d = 5, in 16 - d modules.
_base_ = './resnet32_auglocal.py'
model = dict(backbone=dict(num_modules=[1] * 10 + [6], auxiliary=dict(max_depth=5)))
