# ResNet-32 on STL-10 by back-propagation.
_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/stl10.py',
    '../../_base_/schedules/local_400e.py',
    '../../_base_/classification_runtime.py',
]
# As the paper has it, and what lr 0.8 at batch 1024 scales to.
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(_base_.param_scheduler[0], start_factor=0.1), _base_.param_scheduler[1]]
auto_scale_lr = dict(base_batch_size=128)
