# ResNet-32 on handwritten digits by back-propagation.
_base_ = [
    '../../_base_/models/resnet32_cifar.py',
    '../../_base_/datasets/digits.py',
    '../../_base_/schedules/local_400e.py',
    '../../_base_/classification_runtime.py',
]
# Minutes on a CPU.
max_epochs = 8
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=max_epochs
)
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4))
randomness = dict(seed=0)
