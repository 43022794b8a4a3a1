# ResNet-32 on handwritten digits by back-propagation.
_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/digits.py',
    '../../_base_/schedules/local_8e.py',
    '../../_base_/digits_runtime.py',
]
