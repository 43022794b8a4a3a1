# ResNet-32 on CIFAR-10 by MAN++ on InfoPro, in 16 modules, with MAN's weights (the
# stem's are 5 and 0.5).
_base_ = './resnet32_manpp.py'
model = dict(
    backbone=dict(
        auxiliary=dict(
            host=dict(
                type='InfoPro',
                reconstruction_weight=[5] + [65 / 14] * 4 + [60 / 14] * 5 + [55 / 14] * 5,
                task_weight=[0.5] + [6.5 / 14] * 4 + [6 / 14] * 5 + [5.5 / 14] * 5,
            )
        )
    )
)
