# YOLOv1 on ResNet-50, from scratch, after Redmon et al., "You Only Look Once: Unified, Real-Time
# Object Detection", CVPR 2016: two boxes in each cell of a grid. The grid is the backbone's own,
# 14×14 for 448×448 pixels; Redmon's is 7×7 (bbox_head.stride=64).
model = dict(
    type='fba_mm.YOLOV1',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        style='pytorch',
    ),
    bbox_head=dict(type='fba_mm.YOLOV1Head', num_classes=80, in_channels=2048),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.01,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)
