# What every classification config runs with.
_base_ = ['mmpretrain::_base_/default_runtime.py', './imports.py']
# 400 short epochs: a checkpoint of each would fill the disk.
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=20, max_keep_ckpts=1))
