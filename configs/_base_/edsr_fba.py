# What local learning adds to mmagic's EDSR configs, beside the wrapped generator.
_base_ = './imports.py'
model_wrapper_cfg = dict(type='LocalDataParallel')
# mmagic's configs have a list of their own, and lists replace each other.
edsr_hooks = [dict(type='BasicVisualizationHook', interval=1), dict(type='FBAHook')]
# Set5 and Set14, on RGB and on the luma channel (Y) that papers report.
edsr_evaluators = {
    f'x{scale}': [
        dict(
            type='Evaluator',
            metrics=[
                dict(type=metric, crop_border=scale, prefix=name + suffix, convert_to=channel)
                for suffix, channel in (('', None), ('_Y', 'Y'))
                for metric in ('PSNR', 'SSIM')
            ],
        )
        for name in ('Set5', 'Set14')
    ]
    for scale in (2, 3, 4)
}
