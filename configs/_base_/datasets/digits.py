# scikit-learn's handwritten digits, 1,415 to train with and 382 to test with: no files needed.
_base_ = './cifar10.py'
dataset_type = 'fba_mm.HandwrittenDigits'
data_preprocessor = dict(mean=[78.9] * 3, std=[88.8] * 3)
# Digits are not mirrored: no RandomFlip.
train_pipeline = [dict(type='RandomCrop', crop_size=32, padding=4), _base_.train_pipeline[-1]]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(_delete_=True, type=dataset_type, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(_delete_=True, type=dataset_type, split='test', pipeline=_base_.test_pipeline),
)
test_dataloader = val_dataloader
