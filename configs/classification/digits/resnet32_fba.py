# ResNet-32 on handwritten digits by FBA as an earlier draft describes it (SLM), in 16 modules.
_base_ = [
    '../../_base_/models/resnet32_cifar_fba.py',
    '../../_base_/datasets/digits.py',
    '../../_base_/schedules/local_8e.py',
    '../../_base_/digits_runtime.py',
]
optim_wrapper = dict(type='LocalOptimWrapper')
