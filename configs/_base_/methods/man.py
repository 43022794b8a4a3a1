# MAN (Su 2024) on InfoPro, as released: two copies of the next module's first block, one learned
# and one averaged, and weights that fall with the stage (1, 2, 3) of that block: 5 · (1 - stage /
# (K - 2)), and a tenth of it. Here for ResNet-32 in 15 modules, where the authors' K is 16.
method = dict(
    type='MAN',
    num_classes=10,
    host=dict(
        type='InfoPro',
        reconstruction_weight=[65 / 14] * 4 + [60 / 14] * 5 + [55 / 14] * 5,
        task_weight=[6.5 / 14] * 4 + [6 / 14] * 5 + [5.5 / 14] * 5,
    ),
)
