# Minutes on a CPU. So few epochs leave no time to recover from first steps that are too large.
_base_ = './local_400e.py'
max_epochs = 8
optim_wrapper = dict(optimizer=dict(lr=0.05))  # At 0.1 back-propagation is unstable.
param_scheduler = [
    dict(
        type='LinearLR',
        by_epoch=True,
        begin=0,
        end=1,
        start_factor=0.1,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
auto_scale_lr = dict(base_batch_size=64)
