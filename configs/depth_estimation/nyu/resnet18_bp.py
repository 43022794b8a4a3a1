# Depth of indoor scenes, NYU Depth V2, by a ResNet-18 with the depth head of VPD, by
# back-propagation. The head's own backbone, Stable Diffusion's, cannot be cut.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/datasets/nyu.py',
    'mmseg::_base_/schedules/schedule_25k.py',
    '../../_base_/imports.py',
]

model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=0,
        size=(480, 480),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    decode_head=dict(
        type='VPDDepthHead',
        in_channels=[64, 128, 256, 512],
        embed_dim=32,
        feature_dim=256,
        num_deconv_layers=2,
        num_deconv_filters=(32, 32),
        max_depth=10,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
