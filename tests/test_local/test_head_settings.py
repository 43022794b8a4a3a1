"""What hooks set on the model's head reaches the heads of modules that are copies of it."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from fba_mm import LocalLearningError, localize
from fba_mm.local import HeadSettings

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer
from ..test_analysis.small_configs import classifier


def detector(auxiliary='own'):
    cfg = ConfigDict(model=retinanet(num_modules=None))
    return build(localize(cfg, 3, auxiliary=auxiliary).model)


def heads_of(model):
    return [auxiliary.head for auxiliary in model.backbone.auxiliary]


@pytest.mark.parametrize('epochs', [1, 2])
def test_each_form_of_setting(epochs):
    """As YOLOXModeSwitchHook, WarmupParamHook, SwitchRecipeHook and users' hooks set them."""
    model = detector()
    main, copies = model.bbox_head, [head.bbox_head for head in heads_of(model)]
    main.stride = 1
    for own in copies:
        own.stride = 1
    trainer = Trainer(model)
    for epoch in range(epochs):
        trainer.step(batch())
        main.use_l1 = True
        main.loss_cls.loss_weight = 7.0 + epoch
        main.loss_bbox = MODELS.build(dict(type='SmoothL1Loss', beta=0.5))
        main.assigner.pos_iou_thr = 0.6
        main.train_cfg.allowed_border = 3
        main.margins = [1.0, np.ones(2), torch.ones(2)]
        main.register_buffer('scale', torch.tensor(2.0 + epoch))
        main.cls_convs[0].activate.inplace = False
        del main.stride
        model.settings = dict(a=1)
        trainer.step(batch())
        main.stride = 1
        for own in copies:
            assert own.use_l1 is True and own.loss_cls.loss_weight == 7.0 + epoch
            assert type(own.loss_bbox) is type(main.loss_bbox) and own.loss_bbox.beta == 0.5
            assert own.loss_bbox is not main.loss_bbox
            assert own.assigner.pos_iou_thr == 0.6 and own.train_cfg.allowed_border == 3
            assert own.margins[0] == 1.0 and own.margins is not main.margins
            assert dict(own.named_buffers())['scale'] == 2.0 + epoch
            assert own.cls_convs[0].activate.inplace is False
            assert not hasattr(own, 'stride')
        assert all(head.settings == dict(a=1) for head in heads_of(model))
    trainer.step(batch())


def test_the_local_losses_are_those_of_the_setting():
    model = detector()
    trainer = Trainer(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.step(batch())
    before = trainer.log['local_1.loss_cls']
    model.bbox_head.loss_cls.loss_weight *= 10
    trainer.step(batch())
    torch.testing.assert_close(trainer.log['local_1.loss_cls'], 10 * before)


def test_state_is_each_heads_own():
    """What the model's pass counts, and the weights that it learns, are no settings."""
    model = detector()
    model.bbox_head.counter = 0
    trainer = Trainer(model)
    original = model.bbox_head.loss

    def loss(*args, **kwargs):
        model.bbox_head.counter += 1
        return original(*args, **kwargs)

    model.bbox_head.loss = loss
    weights = [head.bbox_head.retina_cls.weight.clone() for head in heads_of(model)]
    for _ in range(2):
        trainer.step(batch())
    assert model.bbox_head.counter == 2
    for head, weight in zip(heads_of(model), weights):
        assert getattr(head.bbox_head, 'counter', 0) == 0
        # They have learned by themselves.
        assert not torch.equal(head.bbox_head.retina_cls.weight, weight)
        assert not torch.equal(head.bbox_head.retina_cls.weight, model.bbox_head.retina_cls.weight)
    # A validation pass leaves scratch on the model, and sets nothing.
    trainer.hook.before_val_epoch(trainer.runner)
    model.bbox_head.scratch = 1
    trainer.hook.after_val_iter(trainer.runner, 0)
    trainer.step(batch())
    assert not any(hasattr(head.bbox_head, 'scratch') for head in heads_of(model))


@pytest.mark.parametrize('auxiliary, told', [('light', True), ('shared', False), ('own', False)])
def test_heads_of_another_kind_keep_their_settings(auxiliary, told):
    model = detector(auxiliary)
    trainer = Trainer(model)
    lines, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    try:
        for weight in 5.0, 6.0:
            model.bbox_head.loss_cls.loss_weight = weight
            trainer.step(batch())
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    lines = [line for line in lines if 'was set on the model' in line]
    assert len(lines) == told and all('bbox_head.loss_cls.loss_weight' in line for line in lines)
    for head in heads_of(model):
        if head is not None:
            assert head.bbox_head.loss_cls.loss_weight == (1.0 if told else 6.0)


def test_margins_of_a_classifier():
    """MMPretrain's SetAdaptiveMarginsHook sets them before training, by the data's classes."""
    pytest.importorskip('mmpretrain')
    cfg = classifier()
    cfg.model.head = dict(type='mmpretrain.ArcFaceClsHead', num_classes=5, in_channels=64)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build(localize(cfg, 3, auxiliary='own').model)
    settings = HeadSettings(model, model.backbone, model.backbone.auxiliary)
    model.head.set_margins([0.1, 0.2, 0.3, 0.4, 0.5])
    assert settings.follow() and not settings.follow()
    for head in heads_of(model):
        for name in ('margins', 'sinm_m', 'threshold'):
            assert torch.equal(getattr(head.head, name), getattr(model.head, name))


def test_hooks_of_mmpretrain():
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine.hooks import SwitchRecipeHook, WarmupParamHook

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build(localize(classifier(), 3, auxiliary='own').model)
        switched = MODELS.build(dict(type='LabelSmoothLoss', label_smooth_val=0.1, loss_weight=2.0))
    runner = SimpleNamespace(model=model, iter=1, max_iters=8, max_epochs=2)
    settings = HeadSettings(model, model.backbone, model.backbone.auxiliary)
    SwitchRecipeHook._switch_loss(runner, switched)
    warmup = WarmupParamHook('loss_weight', 'head.loss_module.ce', 1)
    warmup.before_train(runner)
    warmup.before_train_iter(runner, 0)
    assert model.head.loss_module.ce.loss_weight == 0.25
    assert settings.follow()
    for head in heads_of(model):
        own = head.head.loss_module
        assert type(own) is type(switched) and own is not switched and own.ce.loss_weight == 0.25


class Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError('one of a kind')


def test_what_cannot_be_copied():
    model = build(retinanet(auxiliary=own_head()))
    settings = HeadSettings(model, model.backbone, model.backbone.auxiliary)
    model.bbox_head.loss_cls = Uncopied()
    with pytest.raises(LocalLearningError, match=r'bbox_head.loss_cls .*\(one of a kind\).*share'):
        settings.follow()
