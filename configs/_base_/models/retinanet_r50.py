# mmdet's RetinaNet-R50, from scratch: nothing is frozen or loaded, batch norm is trained.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
