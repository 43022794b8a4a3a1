# With a feature bank that holds the maps of all modules, from an extra forward.
_base_ = '../retinanet_r34_fba.py'
custom_hooks = [dict(type='FBAHook', scope='all')]
