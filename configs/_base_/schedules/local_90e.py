# The FBA paper's schedule for detectors: from scratch, 90 epochs, SGD with Nesterov momentum, no
# learning in the first 5 iterations, then 1e-4 and a cosine.
max_epochs = 90
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = [
    # A factor of 0 could not be undone after the warm-up.
    dict(type='ConstantLR', factor=1e-6, by_epoch=False, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
