# ResNet-32 on SVHN by MAN, in 15 modules: the stem and the first block are one.
_base_ = ['./resnet32_fba.py', '../../_base_/methods/man.py']
model = dict(
    backbone=dict(num_modules=[2] + [1] * 14, auxiliary=dict(_base_.method, _delete_=True))
)
