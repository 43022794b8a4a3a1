# ResNet-110 on CIFAR-10 by InfoPro, in 55 modules, with the weights that go with that number.
_base_ = ['./resnet110_fba.py', '../../_base_/methods/infopro.py']
model = dict(
    backbone=dict(
        auxiliary=dict(
            _base_.method, _delete_=True, reconstruction_weight=(5, 0.5), task_weight=(0, 1)
        )
    )
)
