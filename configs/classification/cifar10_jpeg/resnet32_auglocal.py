# ResNet-32 on CIFAR-10 as JPEG files by AugLocal with d = 2, in 16 - d modules.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/auglocal.py']
model = dict(
    backbone=dict(num_modules=[1] * 13 + [3], auxiliary=dict(_base_.method, _delete_=True))
)
