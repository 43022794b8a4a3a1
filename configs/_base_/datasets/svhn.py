# SVHN: train_32x32.mat and test_32x32.mat below data_root.
_base_ = './cifar10.py'
dataset_type = 'fba_mm.SVHN'
data_root = 'data/svhn/'
data_preprocessor = dict(mean=[111.6, 113.2, 120.6], std=[50.5, 51.3, 50.2])
# Digits are not mirrored: no RandomFlip.
train_pipeline = [_base_.train_pipeline[0], _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(
    type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
