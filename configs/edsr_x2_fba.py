# EDSR (16 blocks, 64 channels) for ×2 on DIV2K as in mmagic's own config, trained in 4 modules.
# custom_hooks is written out: mmagic's config has a list of its own, and lists replace each other.
_base_ = ['mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py']
experiment_name = 'edsr_x2_fba'
work_dir = './work_dirs/edsr_x2_fba'
custom_imports = dict(imports=['fba_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='BasicVisualizationHook', interval=1), dict(type='FBAHook')]
model_wrapper_cfg = dict(type='LocalDataParallel')
model = dict(
    generator=dict(
        _delete_=True, type='LocalBackbone', backbone=_base_.model.generator, num_modules=4
    )
)
optim_wrapper = dict(type='LocalOptimWrapper')
# Set5 and Set14, on RGB and on the luma channel (Y) that papers report.
test_dataloader = [_base_.set5_dataloader, _base_.set14_dataloader]
test_evaluator = [
    dict(
        type='Evaluator',
        metrics=[
            dict(type=metric, crop_border=2, prefix=name + suffix, convert_to=channel)
            for suffix, channel in (('', None), ('_Y', 'Y'))
            for metric in ('PSNR', 'SSIM')
        ],
    )
    for name in ('Set5', 'Set14')
]
