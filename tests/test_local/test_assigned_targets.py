"""Targets are assigned once per batch."""

from unittest import mock

import torch
from mmdet.models.dense_heads import AnchorHead
from mmdet.registry import TASK_UTILS

from fba_mm.local.assigned_targets import _signature

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer


def assignments(trainer, data):
    """How often targets were assigned in one step, and for how many images."""
    images = []
    get_targets = AnchorHead.get_targets

    def count(self, anchors, *args, **kwargs):
        images.append(len(anchors))
        return get_targets(self, anchors, *args, **kwargs)

    with mock.patch.object(AnchorHead, 'get_targets', count):
        trainer.step(data)
    return images


def test_all_modules_share_the_assignment():
    assert assignments(Trainer(build(retinanet(num_modules='blocks'))), batch()) == [2]


def test_every_batch_has_its_own():
    trainer = Trainer(build(retinanet()))
    assert [assignments(trainer, batch(seed=s)) for s in range(2)] == [[2], [2]]
    a = build(retinanet())
    trainer = Trainer(a)
    trainer.step(batch(seed=0))
    second = trainer.step(batch(seed=1))
    b = build(retinanet())
    other = Trainer(b)
    other.step(batch(seed=0))
    with mock.patch('fba_mm.local.assigned_targets.is_anchor_based', lambda head: False):
        unshared = Trainer(b)
        # The same state as after the first batch, without targets that could be left over.
        unshared.optim_wrapper.load_state_dict(other.optim_wrapper.state_dict())
        other.hook.after_train(other.runner)
        assert unshared.step(batch(seed=1)) == second


def test_heads_with_the_same_anchors_share_and_others_do_not():
    same = Trainer(build(retinanet(auxiliary=own_head())))
    assert assignments(same, batch()) == [2]
    auxiliary = own_head()
    generator = auxiliary['head']['bbox_head']['anchor_generator']
    auxiliary['head']['bbox_head']['anchor_generator'] = dict(generator, ratios=[0.5, 1.0])
    assert assignments(Trainer(build(retinanet(auxiliary=auxiliary))), batch()) == [2, 2]
    auxiliary = own_head()
    auxiliary['head']['train_cfg'] = dict(
        auxiliary['head']['train_cfg'],
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0),
    )
    assert assignments(Trainer(build(retinanet(auxiliary=auxiliary))), batch()) == [2, 2]


def test_settings_are_compared_and_not_their_spelling():
    auxiliary = own_head()
    head = auxiliary['head']
    generator = head['bbox_head']['anchor_generator']
    head['bbox_head']['anchor_generator'] = dict(
        generator, type='mmdet.AnchorGenerator', strides=tuple(generator['strides']), ratios=(1,)
    )
    assigner = dict(head['train_cfg']['assigner'], type='mmdet.MaxIoUAssigner', min_pos_iou=0.0)
    head['train_cfg'] = dict(head['train_cfg'], assigner=assigner, pos_weight=-1.0)
    assert assignments(Trainer(build(retinanet(auxiliary=auxiliary))), batch()) == [2]


def test_samplers_that_draw():
    """Mmdet's hold themselves."""

    def head(num):
        sampler = dict(type='RandomSampler', num=num, pos_fraction=0.5)
        bbox_head = build(retinanet(num_modules=None)).bbox_head
        bbox_head.sampler = TASK_UTILS.build(
            dict(sampler, neg_pos_ub=-1, add_gt_as_proposals=False)
        )
        return bbox_head

    assert _signature(head(256)) == _signature(head(256)) != _signature(head(128))


def test_a_slice_of_the_batch_takes_the_divisor_of_all():
    cfg = retinanet()
    cfg['backbone']['head_batch_size'] = 1
    trainer = Trainer(build(cfg))
    answers = []
    loss_by_feat_single = trainer.model.bbox_head.loss_by_feat_single

    def record(cls_score, bbox_pred, anchors, labels, *args, avg_factor):
        answers.append((len(cls_score), len(labels), avg_factor))
        return loss_by_feat_single(
            cls_score, bbox_pred, anchors, labels, *args, avg_factor=avg_factor
        )

    trainer.model.bbox_head.loss_by_feat_single = record
    assert assignments(trainer, batch(images=3)) == [3]
    assert len(answers) == 3 * 4 * 5  # images, modules, levels
    assert {answer[:2] for answer in answers} == {(1, 1)}
    assert len({answer[2] for answer in answers}) == 1
    torch.manual_seed(0)
    whole = Trainer(build(retinanet()))
    whole.model.bbox_head.loss_by_feat_single = record
    trainer.model.bbox_head = whole.model.bbox_head
    answers.clear()
    loss_by_feat_single = type(whole.model.bbox_head).loss_by_feat_single.__get__(
        whole.model.bbox_head
    )
    whole.step(batch(images=3))
    assert {answer[0] for answer in answers} == {3} and len({a[2] for a in answers}) == 1
