from functools import partial
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from torch import nn

from fba_mm import localize
from fba_mm.analysis import measure_step
from fba_mm.analysis.activation_checkpointing import takes_with_cp
from fba_mm.analysis.step_configs import in_mixed_precision
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.errors import LocalLearningError
from fba_mm.planning.baselines import baselines
from fba_mm.planning.ways import local_way
from fba_mm.tasks import task_of

from ..conftest import needs
from ..test_analysis.small_configs import classifier, detector, local_detector, super_resolution

# OpenMMLab's backbones call it so.
pytestmark = pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')


def by_kind(cfg, images=2, **kwargs):
    return {variant.kind: variant for variant in baselines(cfg, images, **kwargs)}


def gradients(variant, images=4, size=32):
    """What one run of a way to train leaves in ``.grad``, not applied."""
    torch.manual_seed(0)
    step = variant.build()
    step.optim_wrapper.apply = 'end'
    data = synthetic_batch(step.model, (images, 3, size, size))
    with mock.patch.object(step.optim_wrapper, 'step') as applied, mock.patch.object(
        step.optim_wrapper, 'zero_grad'
    ):
        variant.run(step, data)
    return applied.call_count, {
        name.replace('backbone.backbone', 'backbone').replace(
            'generator.backbone', 'generator'
        ): p.grad
        for name, p in step.model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize('make, count', [(classifier, 62), (super_resolution, 32)])
@pytest.mark.parametrize('kind', ['accumulation', 'checkpointing', 'images'])
def test_the_same_gradients_by_another_way(kind, make, count):
    found = by_kind(make(), images=4)
    applied, expected = gradients(found['bp'])
    applied_here, found = gradients(found[kind])
    assert applied == applied_here == 1
    assert found.keys() == expected.keys() and len(found) == count
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    assert max(grad.abs().max() for grad in expected.values()) > 0.01


@pytest.mark.slow
def test_accumulation_and_checkpointing_keep_less():
    kinds = ['bp', 'checkpointing', 'accumulation', 'forward']
    peaks = {}
    for variant in reversed(baselines(classifier(), 4, kinds)):
        step = variant.build()
        data = synthetic_batch(step.model, (4, 3, 128, 128))
        variant.run(step, data)
        peaks[variant.kind] = measure_step(partial(variant.run, step, data)).peak_bytes
    # Measured: 0.38, 0.80 (with_cp) and 0.53.
    assert peaks['forward'] < 0.45 * peaks['bp']
    assert 0.5 * peaks['bp'] < peaks['checkpointing'] < 0.85 * peaks['bp']
    assert peaks['accumulation'] < 0.6 * peaks['bp']


def test_forward_computes_the_loss_and_nothing_else():
    forward = by_kind(detector())['forward']
    applied, found = gradients(forward, images=2, size=64)
    assert applied == 0 and not found
    step = forward.build()
    loss = forward.run(step, synthetic_batch(step.model, (2, 3, 64, 64)))
    assert loss > 0 and not loss.requires_grad and step.model.training


def test_a_local_config_and_its_baselines():
    cfg = local_detector(light=True, apply='eager')
    local, *others = baselines(cfg, 2, ['bp', 'checkpointing', 'accumulation', 'forward'])
    assert local.name == 'local, K=3, eager' and local.cfg.model.backbone.type == 'LocalBackbone'
    assert local.num_modules == 3
    assert [variant.name for variant in others] == [
        'BP',
        'accumulation, 1 image at a time',
        'with_cp=True',
        'checkpointing, 3 spans',
        'checkpointing, blocks',
        'accumulation, 1 image at a time, checkpointing, 3 spans',
        'accumulation, 1 image at a time, checkpointing, 3 spans, neck and head',
        'forward and loss',
    ]
    for variant in others:
        assert variant.num_modules is None and variant.kind != 'local'
        assert variant.cfg.optim_wrapper.accumulative_counts == 1
        assert [hook.type for hook in variant.cfg.custom_hooks] == [
            'SplitBatchHook'
        ] * variant.name.startswith('accumulation')
    bp = others[0].cfg
    assert bp.model.backbone.type == 'mmdet.ResNet' and not bp.model.backbone.with_cp
    assert bp.optim_wrapper.type == 'OptimWrapper'


@needs('mmagic')
def test_a_generator_and_its_baselines():
    local, *others = baselines(localize(super_resolution(), 3), 2, ['bp', 'checkpointing'])
    assert local.name == 'local, K=3' and local.cfg.model.generator.type == 'LocalBackbone'
    assert [variant.name for variant in others] == [
        'BP',
        'checkpointing, 3 spans',
        'checkpointing, blocks',
    ]
    assert others[0].cfg.model.generator.type == 'mmagic.EDSRNet'


@pytest.mark.parametrize(
    'kinds, images, expected',
    [
        ([], 2, ['bp']),
        (['checkpointing'], 2, ['bp'] + 3 * ['checkpointing']),
        (['accumulation', 'forward'], 1, ['bp', 'forward']),
        (['images'], 16, ['bp']),
    ],
)
def test_which_baselines(kinds, images, expected):
    assert [one.kind for one in baselines(detector(), images, kinds)] == expected


def test_local_ways_of_a_stock_config():
    ways = [
        local_way(task_of(detector()), heads, k) for heads in ('light', 'pooled') for k in (1, 2)
    ]
    found = baselines(detector(), 2, ['bp'], ways)
    assert [one.name for one in found] == [
        'local, K=1, light heads',
        'local, K=2, light heads',
        "local, K=1, the model's head",
        "local, K=2, the model's head",
        'BP',
    ]
    assert [one.num_modules for one in found] == [1, 2, 1, 2, None]


def test_back_propagation_keeps_everything():
    cfg = detector(with_cp=True)
    cfg.optim_wrapper.accumulative_counts = 8
    bp = by_kind(cfg)['bp']
    assert not bp.cfg.model.backbone.with_cp and bp.cfg.optim_wrapper.accumulative_counts == 1
    assert cfg.model.backbone.with_cp and cfg.optim_wrapper.accumulative_counts == 8


def test_nothing_is_loaded():
    cfg = detector()
    pretrained = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    cfg.merge_from_dict(
        dict(
            load_from='a.pth',
            model=dict(
                init_cfg=pretrained,
                backbone=dict(init_cfg=pretrained),
                neck=dict(init_cfg=[dict(type='Xavier', layer='Conv2d'), pretrained]),
                bbox_head=dict(init_cfg=dict(type='Normal', layer='Conv2d', std=0.01)),
            ),
        )
    )
    for kind in ({}, {'num_modules': 3}):
        found = baselines(localize(cfg, **kind) if kind else cfg, 2)
        for variant in found:
            assert 'Pretrained' not in variant.cfg.pretty_text and variant.cfg.load_from is None
            assert variant.cfg.model.bbox_head.init_cfg.type == 'Normal'
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'


@pytest.mark.parametrize('make', [classifier, local_detector])
def test_mixed_precision(make):
    found = baselines(in_mixed_precision(make()), 2)
    for variant in found:
        assert variant.cfg.optim_wrapper.type == 'AmpLocalOptimWrapper'
        assert variant.cfg.optim_wrapper.dtype == 'bfloat16'
    step = found[0].build()
    seen = set()
    for module in step.model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    found[0].run(step, synthetic_batch(step.model, (2, 3, 64, 64)))
    assert seen == {torch.bfloat16}


@needs('mmpretrain')
@pytest.mark.parametrize(
    'backbone, expected',
    [
        (dict(type='ResNet', depth=18), True),
        (dict(type='mmdet.ResNeXt', depth=50), True),
        (dict(type='ResNet_CIFAR', depth=18), True),
        (dict(type='VGG', depth=11), False),
        (dict(type='Unheard'), False),
    ],
)
def test_who_takes_the_option(backbone, expected):
    cfg = Config(dict(default_scope='mmpretrain', model=dict(backbone=backbone)))
    assert takes_with_cp(cfg) == expected


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda cfg: cfg.pop('model'), 'no model'),
        (lambda cfg: cfg.pop('optim_wrapper'), 'no optim_wrapper'),
        (lambda cfg: cfg.model.pop('backbone'), 'no model.backbone'),
    ],
)
def test_incomplete_configs(spoil, message):
    cfg = detector()
    spoil(cfg)
    with pytest.raises(LocalLearningError, match=message):
        baselines(cfg, 2)
