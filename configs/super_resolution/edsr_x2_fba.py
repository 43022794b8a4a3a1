# EDSR ×2 on built photos by FBA, in 4 modules.
_base_ = './edsr_x2_bp.py'
model = dict(
    generator=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.generator, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
custom_hooks = [dict(type='BasicVisualizationHook', interval=1), dict(type='FBAHook')]
model_wrapper_cfg = dict(type='LocalDataParallel')
