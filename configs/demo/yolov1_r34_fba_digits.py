# The demo's YOLOv1 by local learning, in 4 modules with a head each.
_base_ = ['./yolov1_r34_digits.py', '../_base_/local_learning.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='LocalBackbone',
        backbone=_base_.model.backbone,
        num_modules=4,
        auxiliary=dict(
            type='SLM',
            head=dict(
                type='fba_mm.YOLOV1',
                bbox_head=_base_.model.bbox_head,
                test_cfg=_base_.model.test_cfg,
            ),
        ),
    )
)
# Each module's gradients are clipped by themselves: each has a loss of its own.
optim_wrapper = dict(type='LocalOptimWrapper', apply='eager')
