# With a copy of neck and head for each module.
_base_ = '../retinanet_r34_fba.py'
model = dict(
    backbone=dict(
        auxiliary=dict(
            type='SLM',
            head=dict(
                type='RetinaNet',
                neck=_base_.model.neck,
                bbox_head=_base_.model.bbox_head,
                train_cfg=_base_.model.train_cfg,
            ),
        )
    )
)
