# SVHN: train_32x32.mat and test_32x32.mat below data_root.
_base_ = './cifar10.py'
dataset_type = 'fba_mm.SVHN'
data_root = 'data/svhn/'
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
# Digits are not mirrored: no RandomFlip.
train_pipeline = [dict(type='RandomCrop', crop_size=32, padding=2), _base_.train_pipeline[-1]]
train_dataloader = dict(
    dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
