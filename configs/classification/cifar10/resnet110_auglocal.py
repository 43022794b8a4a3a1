# ResNet-110 on CIFAR-10 by AugLocal with d = 3, in 55 - d modules.
_base_ = ['./resnet110_fba.py', '../../_base_/methods/auglocal.py']
model = dict(
    backbone=dict(
        num_modules=[1] * 51 + [4], auxiliary=dict(_base_.method, _delete_=True, max_depth=3)
    )
)
