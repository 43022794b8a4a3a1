# Without SLM's blocks: deeper maps are the module's own, pooled.
_base_ = '../retinanet_r34_fba.py'
model = dict(backbone=dict(auxiliary=dict(type='SLM', blocks_per_stage=0)))
