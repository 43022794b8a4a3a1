# ResNet-18 with half of its channels on CIFAR-10 as JPEG files, enlarged to 64×64, by
# back-propagation: weights to fine-tune from, where none can be downloaded.
_base_ = [
    '../../configs/_base_/datasets/cifar10_jpeg.py',
    '../../configs/_base_/schedules/local_8e.py',
    '../../configs/_base_/classification_runtime.py',
]
# The statistics that detectors are fine-tuned with.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=32, stem_channels=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
)
image_size = 64
load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(image_size, image_size))]
train_pipeline = [
    *load,
    dict(type='RandomCrop', crop_size=image_size, padding=8),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[*load, dict(type='PackInputs')]),
)
test_dataloader = val_dataloader

max_epochs = 3
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True, by_epoch=True)
]
train_cfg = dict(
    type='DeviceEpochLoop',
    max_epochs=max_epochs,
    val_interval=max_epochs,
    joint_sample=True,
    channels_last=True,
)
default_hooks = dict(checkpoint=dict(interval=1))
randomness = dict(seed=0)
