# The same by local learning in 4 modules, with the model's own neck and head shared by all.
_base_ = ['./retinanet_r18_bccd.py', '../../configs/_base_/fba.py']
model = dict(backbone=dict(_delete_=True, type='LocalBackbone',
                           backbone=_base_.model.backbone, num_modules=4))
optim_wrapper = dict(type='LocalOptimWrapper')
