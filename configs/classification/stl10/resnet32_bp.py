# ResNet-32 on STL-10 by back-propagation.
_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/stl10.py',
    '../../_base_/schedules/local_400e_stl10.py',
    '../../_base_/classification_runtime.py',
]
