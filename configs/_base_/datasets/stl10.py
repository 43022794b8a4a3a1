# STL-10, the labelled part: stl10_binary/{train,test}_{X,y}.bin below data_root.
_base_ = './cifar10.py'
dataset_type = 'fba_mm.STL10'
data_root = 'data/stl10/'
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_pipeline = [
    dict(type='RandomCrop', crop_size=96, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128, dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=128, dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
