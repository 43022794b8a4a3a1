# A small YOLOv1 on the demo's digits, from scratch, by back-propagation. The backbone ends at
# stride 16, so that a grid of 10×10 cells holds most digits apart.
_base_ = './retinanet_r34_digits.py'
model = dict(
    _delete_=True,
    type='fba_mm.YOLOV1',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=34,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        base_channels=16,
        stem_channels=16,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
    ),
    bbox_head=dict(
        type='fba_mm.YOLOV1Head',
        num_classes=10,
        in_channels=64,
        in_stride=16,
        stride=16,
        feat_channels=64,
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.01,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=30,
    ),
)
