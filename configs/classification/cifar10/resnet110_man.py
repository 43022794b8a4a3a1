# ResNet-110 on CIFAR-10 by MAN, in 54 modules: the stem and the first block are one.
_base_ = ['./resnet110_fba.py', '../../_base_/methods/man.py']
model = dict(
    backbone=dict(
        num_modules=[2] + [1] * 53,
        auxiliary=dict(
            _base_.method,
            _delete_=True,
            host=dict(
                type='InfoPro',
                reconstruction_weight=[260 / 53] * 17 + [255 / 53] * 18 + [250 / 53] * 18,
                task_weight=[26 / 53] * 17 + [25.5 / 53] * 18 + [25 / 53] * 18,
            ),
        ),
    )
)
