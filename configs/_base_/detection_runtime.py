# What every detection config runs with.
_base_ = ['mmdet::_base_/default_runtime.py', './imports.py']
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1))
