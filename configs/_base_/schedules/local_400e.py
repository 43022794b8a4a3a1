# The schedule of AugLocal, MAN and the FBA paper's Table 1: 400 epochs at batch 1024, cosine, after
# a warm-up from 0.01 in 10 epochs.
max_epochs = 400
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.8, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = [
    dict(type='LinearLR', by_epoch=True, begin=0, end=11, start_factor=0.0125),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=max_epochs),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=1024)
