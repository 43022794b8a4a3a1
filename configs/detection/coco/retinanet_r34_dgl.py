# RetinaNet-R34 on COCO by DGL with a feature pyramid, in 4 modules; each has a copy of the model's
# neck and head.
_base_ = './retinanet_r34_fba.py'
model = dict(
    backbone=dict(
        auxiliary=dict(
            type='DGLFPN',
            head=dict(
                type='RetinaNet',
                neck=_base_.model.neck,
                bbox_head=_base_.model.bbox_head,
                train_cfg=_base_.model.train_cfg,
            ),
        )
    )
)
custom_hooks = [dict(type='FBAHook', scope='off')]
