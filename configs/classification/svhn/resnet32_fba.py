# ResNet-32 on SVHN by FBA, in 16 modules.
_base_ = [
    '../../_base_/models/resnet32_cifar_fba.py',
    '../../_base_/datasets/svhn.py',
    '../../_base_/schedules/local_400e.py',
    '../../_base_/classification_runtime.py',
]
optim_wrapper = dict(type='LocalOptimWrapper')
