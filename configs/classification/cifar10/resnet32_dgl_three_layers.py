# ResNet-32 on CIFAR-10 by DGL as in its own repository, in 16 modules: three hidden layers, 50
# epochs at batch 128, a fifth of the rate after every 15.
_base_ = './resnet32_dgl.py'
model = dict(backbone=dict(auxiliary=dict(hidden_layers=3, hidden_bias=True)))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = dict(_delete_=True, type='StepLR', by_epoch=True, step_size=15, gamma=0.2)
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=128)
