# RetinaNet-R18 on blood cells as configs are shipped: from pretrained weights, with the stem and
# the first stage frozen and batch norm evaluated. The weights come from
#     python tools/train.py benchmarks/configs/resnet18_cifar10_jpeg.py
_base_ = './retinanet_r18_bccd.py'
model = dict(
    backbone=dict(
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_cifar10_jpeg/epoch_3.pth',
            prefix='backbone.',
        ),
    )
)
