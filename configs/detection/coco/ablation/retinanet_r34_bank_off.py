# Without a feature bank.
_base_ = '../retinanet_r34_fba.py'
custom_hooks = [dict(type='FBAHook', scope='off')]
