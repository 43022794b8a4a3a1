# PASCAL VOC 2007, as in the FBA paper (9,963 images): trainval to learn from, test to compare on.
# Faults in its annotation files are reported before training; on_fault='skip' leaves such images
# out instead.
_base_ = 'mmdet::_base_/datasets/voc0712.py'

# The paper doesn't say its input's size; the memory that it reports for 64 images is near that of
# 320×320 pixels.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    # After resizing: boxes are compared at the image's own size.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    dataset=dict(
        _delete_=True,
        type='fba_mm.CheckedVOCDataset',
        on_fault='refuse',
        data_root='data/VOCdevkit/',
        ann_file='VOC2007/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    dataset=dict(type='fba_mm.CheckedVOCDataset', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='fba_mm.ClasswiseVOCMetric')
test_evaluator = val_evaluator
# --auto-scale-lr takes the learning rate to other batches.
auto_scale_lr = dict(enable=False, base_batch_size=64)
