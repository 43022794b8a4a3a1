# ResNet-32 on handwritten digits by FBA as the current paper describes it, in 16 modules: one block
# like the last of the module's own stage, the pooled bank joined before the class head.
_base_ = './resnet32_fba.py'
model = dict(backbone=dict(auxiliary=dict(type='StageTail')))
