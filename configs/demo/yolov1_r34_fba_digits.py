# The demo's YOLOv1 by local learning, in 4 modules.
_base_ = './yolov1_r34_digits.py'
model = dict(backbone=dict(_delete_=True, type='LocalBackbone',
                           backbone=_base_.model.backbone, num_modules=4,
                           auxiliary=dict(type='SLM', blocks_per_stage=0)))
optim_wrapper = dict(type='LocalOptimWrapper')
custom_hooks = [dict(type='FBAHook')]
