# ResNet-32 on handwritten digits by FBA, in 8 modules whose auxiliary networks are twice as deep.
_base_ = './resnet32_fba.py'
model = dict(backbone=dict(num_modules=8, auxiliary=dict(blocks_per_stage=2)))
