# What every super-resolution config on built photos runs with: minutes on a CPU.
_base_ = ['mmagic::_base_/default_runtime.py', './imports.py']
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=1000)
val_cfg = dict(type='MultiValLoop')
test_cfg = dict(type='MultiTestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-4))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=1000, eta_min=1e-6)
default_hooks = dict(
    logger=dict(interval=20),
    # In the work directory, wherever that is.
    checkpoint=dict(interval=1000, max_keep_ckpts=1, save_best=None, out_dir=None),
)
