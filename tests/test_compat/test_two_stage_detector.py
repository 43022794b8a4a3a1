"""A small Mask R-CNN on the stand-in: NMS of proposals, RoIAlign for boxes, masks and targets."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from fba_mm.compat import install_mmcv_ops

install_mmcv_ops()


@pytest.fixture
def model(device):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    config = Config.fromstring("_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'", '.py').model
    config.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    config.rpn_head.update(in_channels=32, feat_channels=32)
    config.roi_head.bbox_roi_extractor.out_channels = 32
    config.roi_head.mask_roi_extractor.out_channels = 32
    config.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=3)
    config.roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=3)
    config.train_cfg.rcnn.sampler.num = 32
    config.train_cfg.rpn_proposal.nms_pre = 200
    config.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
    config.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield MODELS.build(config).to(device)


def make_batch(size=96):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(size, size),
            ori_shape=(size, size),
            scale_factor=(1.0, 1.0),
            pad_shape=(size, size),
            batch_input_shape=(size, size),
        )
    )
    mask = np.zeros((1, size, size), np.uint8)
    mask[0, 20:70, 10:60] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 20.0, 60.0, 70.0]]),
        labels=torch.tensor([1]),
        masks=BitmapMasks(mask, size, size),
    )
    return dict(inputs=[image], data_samples=[sample])


def test_trains_a_step_and_predicts(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = model.data_preprocessor(make_batch(), training=True)
    losses = model(**batch, mode='loss')
    total, log = model.parse_losses(losses)
    assert {'loss_rpn_cls', 'loss_bbox', 'loss_mask'} <= set(log)
    assert torch.isfinite(total) and log['loss_mask'] > 0

    model.zero_grad()
    # Whatever reaches the backbone from here comes back through RoIAlign.
    (losses['loss_cls'] + losses['loss_mask']).sum().backward(retain_graph=True)
    through_regions = model.backbone.conv1.weight.grad.abs().sum()
    assert torch.isfinite(through_regions) and through_regions > 0
    total.backward()
    optimizer.step()

    model.eval()
    with torch.no_grad():
        batch = model.data_preprocessor(make_batch(), training=False)
        (prediction,) = model(**batch, mode='predict')
    instances = prediction.pred_instances
    assert 0 < len(instances) <= 100
    assert torch.isfinite(instances.bboxes).all()
    assert instances.masks.shape == (len(instances), 96, 96)
