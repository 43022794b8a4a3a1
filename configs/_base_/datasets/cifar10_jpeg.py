# CIFAR-10 as JPEG files: {train,test}/<class>/*.jpg below data_root.
_base_ = './cifar10.py'
dataset_type = 'CustomDataset'
data_root = 'data/cifar10_jpeg/'
# A JPEG file is read as BGR.
data_preprocessor = dict(to_rgb=True)
metainfo = dict(
    classes=(
        'airplane',
        'automobile',
        'bird',
        'cat',
        'deer',
        'dog',
        'frog',
        'horse',
        'ship',
        'truck',
    )
)
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix='train',
        metainfo=metainfo,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        data_prefix='test',
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
