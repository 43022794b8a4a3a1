# RetinaNet-R18 on blood cells as configs are shipped: from pretrained weights, with the stem and
# the first stage frozen and batch norm evaluated; photos are half as large. The weights come from
#     python tools/train.py benchmarks/configs/resnet18_cifar10_jpeg.py
_base_ = './retinanet_r18_bccd.py'

image_scale = (160, 120)
train_pipeline = [
    dict(step, scale=image_scale) if step['type'] == 'Resize' else step
    for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=image_scale) if step['type'] == 'Resize' else step
    for step in _base_.test_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(
    backbone=dict(
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_cifar10_jpeg/epoch_3.pth',
            prefix='backbone.',
        ),
    ),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=2)),
)

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        begin=0,
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
