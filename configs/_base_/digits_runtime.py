# What configs on handwritten digits run with.
_base_ = './classification_runtime.py'
default_hooks = dict(checkpoint=dict(interval=4))
randomness = dict(seed=0)
