# EDSR (16 blocks, 64 channels) for ×4 on DIV2K as in mmagic's own config, trained in 4 modules.
_base_ = ['mmagic::edsr/edsr_x4c64b16_1xb16-300k_div2k.py', './_base_/edsr_fba.py']
experiment_name = 'edsr_x4_fba'
work_dir = './work_dirs/edsr_x4_fba'
model = dict(
    generator=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.generator, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
custom_hooks = _base_.edsr_hooks
test_dataloader = [_base_.set5_dataloader, _base_.set14_dataloader]
test_evaluator = _base_.edsr_evaluators.x4
