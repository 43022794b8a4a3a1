# Photos that scikit-image and scikit-learn install, ×2, built by
# tools/dataset_converters/build_photo_pairs.py. For ×3 set data_prefix.img to 'LRbicx3',
# gt_patch_size to a multiple of 3, scale and crop_border to 3.
dataset_type = 'BasicImageDataset'
data_root = 'data/photo_pairs/'
metainfo = dict(dataset_type='photos', task_name='sisr')
data_prefix = dict(img='LRbicx2', gt='GTmod12')
load = [
    dict(
        type='LoadImageFromFile',
        key=key,
        color_type='color',
        channel_order='rgb',
        imdecode_backend='cv2',
    )
    for key in ('img', 'gt')
]
train_pipeline = [
    *load,
    dict(type='SetValues', dictionary=dict(scale=2)),
    dict(type='PairedRandomCrop', gt_patch_size=48),
    dict(type='Flip', keys=['img', 'gt'], flip_ratio=0.5, direction='horizontal'),
    dict(type='Flip', keys=['img', 'gt'], flip_ratio=0.5, direction='vertical'),
    dict(type='RandomTransposeHW', keys=['img', 'gt'], transpose_ratio=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root + 'train',
        data_prefix=data_prefix,
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root + 'val',
        data_prefix=data_prefix,
        metainfo=metainfo,
        pipeline=[*load, dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
# On RGB, and on the luma channel (Y), which papers report.
val_evaluator = dict(
    type='Evaluator',
    metrics=[
        dict(type=metric, crop_border=2, prefix='photos' + suffix, convert_to=channel)
        for suffix, channel in (('', None), ('_Y', 'Y'))
        for metric in ('PSNR', 'SSIM')
    ],
)
test_evaluator = val_evaluator
