# YOLOv1 with half of ResNet-18's channels on blood cells, from scratch, by back-propagation. The
# backbone ends at stride 16: a grid of 20×16 cells for 320×256 pixels.
_base_ = './retinanet_r18_bccd.py'
model = dict(
    _delete_=True,
    type='fba_mm.YOLOV1',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        base_channels=32,
        stem_channels=32,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
    ),
    bbox_head=dict(
        type='fba_mm.YOLOV1Head',
        num_classes=3,
        in_channels=128,
        in_stride=16,
        stride=16,
        feat_channels=128,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.01,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)
