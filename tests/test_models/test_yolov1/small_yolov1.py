"""A small YOLOv1 that the tests share."""

import fba_mm.models.yolov1  # noqa: F401
from tests.conftest import NUM_CLASSES


def yolov1(num_modules=4, auxiliary=None, norm=None, **head) -> dict:
    """A narrow YOLOv1 with a grid of 16 pixels; ``num_modules=None`` leaves it unwrapped."""
    resnet = dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        zero_init_residual=False,
    )
    if num_modules is not None:
        resnet = dict(
            type='LocalBackbone',
            backbone=resnet,
            num_modules=num_modules,
            auxiliary=auxiliary or dict(type='SLM'),
        )
    return dict(
        type='YOLOV1',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=32
        ),
        backbone=resnet,
        bbox_head=small_head(norm, **head),
        test_cfg=dict(
            score_thr=0.05,
            nms_pre=200,
            min_bbox_size=0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=20,
        ),
    )


def small_head(norm=None, **settings) -> dict:
    """A head for maps of 32 channels and stride 16."""
    return dict(
        dict(
            type='YOLOV1Head',
            num_classes=NUM_CLASSES,
            in_channels=32,
            in_stride=16,
            stride=16,
            feat_channels=16,
            norm_cfg=norm,
        ),
        **settings,
    )
