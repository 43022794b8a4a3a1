# ViT-Tiny on ImageNet by back-propagation, as MAN++'s released code trains it: 8 GPUs with 128
# images each, 90 epochs, AdamW with weight decay on all parameters, cosine without warm-up.
# ViT-Small is arch='deit-s' with 384 channels, ViT-Base 'deit-b' with 768.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/imports.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch='deit-t',
        img_size=224,
        patch_size=16,
        patch_cfg=dict(norm_cfg=dict(type='LN', eps=1e-6)),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=192,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=90)
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)
