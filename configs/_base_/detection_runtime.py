# What every detection config runs with.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(
    imports=['fba_mm', 'fba_mm.datasets.checked_voc', 'fba_mm.evaluation', 'fba_mm.models.yolov1'],
    allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1))
