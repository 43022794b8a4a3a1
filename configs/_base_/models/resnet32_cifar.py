# ResNet-32 for small images: 3 stages of 5 basic blocks with 16, 32 and 64 channels.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='fba_mm.CifarResNet', depth=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        init_cfg=None,  # PyTorch's own, as the authors have it
        loss=dict(type='CrossEntropyLoss'),
    ),
)
