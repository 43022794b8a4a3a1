"""Configs of small models, to profile."""

from mmengine.config import Config

from fba_mm import localize
from fba_mm.analysis.step_configs import from_scratch
from fba_mm.config import load_config

from ..conftest import own_head, retinanet
from ..super_resolution import editor, edsr


def detector(**backbone) -> Config:
    """A stock RetinaNet."""
    return Config(
        dict(
            default_scope='mmdet',
            model=retinanet(num_modules=None, **backbone),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
            ),
        )
    )


def cascade() -> Config:
    """MMDetection's Cascade Mask R-CNN with few channels."""
    cfg = from_scratch(load_config('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'))
    model, roi_head = cfg.model, cfg.model.roi_head
    model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    for extractor in (roi_head.bbox_roi_extractor, roi_head.mask_roi_extractor):
        extractor.out_channels = 8
    for head in roi_head.bbox_head:
        head.update(in_channels=8, fc_out_channels=16, num_classes=4)
    roi_head.mask_head.update(in_channels=8, conv_out_channels=8, num_classes=4)
    return cfg


def local_detector(num_modules=3, light=False, **kwargs) -> Config:
    """The same in local modules."""
    return localize(detector(), num_modules, auxiliary=own_head() if light else 'shared', **kwargs)


def super_resolution(network=edsr, num_blocks: int = 6, **kwargs) -> Config:
    """A stock model of mmagic, which has a generator for a backbone."""
    return Config(
        dict(
            default_scope='mmagic',
            model=editor(None, network=network, num_blocks=num_blocks, **kwargs),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3)),
        )
    )


def classifier(norm: str = 'GN', **backbone) -> Config:
    """A stock classifier whose images don't see each other, unless ``norm`` is BN."""
    norm_cfg = dict(type='GN', num_groups=4) if norm == 'GN' else dict(type=norm)
    resnet = dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        norm_cfg=norm_cfg,
        zero_init_residual=False,
    )
    resnet.update(backbone)
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=5, mean=[127.5] * 3, std=[64.0] * 3),
            model=dict(
                type='ImageClassifier',
                backbone=resnet,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=5,
                    in_channels=64,
                    loss=dict(type='CrossEntropyLoss'),
                ),
            ),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        )
    )
