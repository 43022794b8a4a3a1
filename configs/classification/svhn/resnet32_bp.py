# ResNet-32 on SVHN by back-propagation.
_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/svhn.py',
    '../../_base_/schedules/local_400e.py',
    '../../_base_/classification_runtime.py',
]
