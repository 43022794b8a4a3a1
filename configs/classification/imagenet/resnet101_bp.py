# ResNet-101 on ImageNet by back-propagation, as mmpretrain has it: 8 GPUs with 32 images each.
_base_ = ['mmpretrain::resnet/resnet101_8xb32_in1k.py', '../../_base_/imports.py']
