# As the paper has it for STL-10, and what lr 0.8 at batch 1024 scales to.
_base_ = './local_400e.py'
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(_base_.param_scheduler[0], start_factor=0.1), _base_.param_scheduler[1]]
auto_scale_lr = dict(base_batch_size=128)
