from functools import partial
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from torch import nn

from fba_mm import localize
from fba_mm.analysis import measure_step
from fba_mm.analysis.activation_checkpointing import checkpoint_layers, takes_with_cp
from fba_mm.analysis.baselines import baselines, in_mixed_precision
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.errors import LocalLearningError

from .small_configs import classifier, detector, local_detector, super_resolution

# OpenMMLab's backbones call it so.
pytestmark = pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')


def by_kind(cfg, images=2, **kwargs):
    return {baseline.kind: baseline for baseline in baselines(cfg, images, **kwargs)}


def gradients(baseline, images=4, size=32):
    """What one run of a baseline leaves in ``.grad``, not applied."""
    torch.manual_seed(0)
    step = baseline.build()
    data = synthetic_batch(step.model, (images, 3, size, size))
    with mock.patch.object(step.optim_wrapper, 'step') as applied, mock.patch.object(
        step.optim_wrapper, 'zero_grad'
    ):
        baseline.run(step, data)
    return applied.call_count, {
        name: p.grad for name, p in step.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize('make, count', [(classifier, 62), (super_resolution, 32)])
@pytest.mark.parametrize('kind', ['accumulation', 'checkpointing'])
def test_the_same_gradients_by_another_way(kind, make, count):
    found = by_kind(make(), images=4)
    applied, expected = gradients(found['bp'])
    applied_here, found = gradients(found[kind])
    assert applied == applied_here == 1
    assert found.keys() == expected.keys() and len(found) == count
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    assert max(grad.abs().max() for grad in expected.values()) > 0.01


def test_accumulation_and_checkpointing_keep_less():
    peaks = {}
    for kind, baseline in by_kind(classifier(), images=4).items():
        step = baseline.build()
        data = synthetic_batch(step.model, (4, 3, 128, 128))
        baseline.run(step, data)
        peaks[kind] = measure_step(partial(baseline.run, step, data)).peak_bytes
    # Measured: 0.38, 0.80 and 0.41.
    assert peaks['forward'] < 0.45 * peaks['bp']
    assert 0.5 * peaks['bp'] < peaks['checkpointing'] < 0.85 * peaks['bp']
    assert peaks['accumulation'] < 0.5 * peaks['bp']


def test_forward_computes_the_loss_and_nothing_else():
    baseline = by_kind(detector())['forward']
    applied, found = gradients(baseline, images=2, size=64)
    assert applied == 0 and not found
    step = baseline.build()
    loss = baseline.run(step, synthetic_batch(step.model, (2, 3, 64, 64)))
    assert loss > 0 and not loss.requires_grad and step.model.training


def test_a_local_config_and_its_stock_twins():
    local, *others = baselines(local_detector(light=True, apply='eager'), 2)
    assert local.name == 'local, K=3, eager' and local.cfg.model.backbone.type == 'LocalBackbone'
    assert [baseline.name for baseline in others] == [
        'BP',
        'BP, checkpointing',
        'BP, accumulation',
        'forward and loss',
    ]
    for baseline in others:
        assert baseline.cfg.model.backbone.type == 'mmdet.ResNet' and not baseline.cfg.custom_hooks
        assert baseline.cfg.optim_wrapper.type == 'OptimWrapper'
        assert baseline.cfg.optim_wrapper.accumulative_counts == 1 + (
            baseline.kind == 'accumulation'
        )
        assert baseline.cfg.model.backbone.with_cp == (baseline.kind == 'checkpointing')


def test_a_generator_and_its_stock_twins():
    local, *others = baselines(localize(super_resolution(), 3), 2)
    assert local.name == 'local, K=3' and local.cfg.model.generator.type == 'LocalBackbone'
    assert [baseline.kind for baseline in others] == [
        'bp',
        'checkpointing',
        'accumulation',
        'forward',
    ]
    peaks = {}
    for baseline in others[:2]:
        assert baseline.cfg.model.generator.type == 'mmagic.EDSRNet'
        step = baseline.build()
        data = synthetic_batch(step.model, (2, 3, 16, 16))
        peaks[baseline.kind] = measure_step(partial(baseline.run, step, data)).peak_bytes
    assert peaks['checkpointing'] < 0.9 * peaks['bp']


@pytest.mark.parametrize(
    'kinds, images, expected',
    [
        ([], 2, ['bp']),
        (['checkpointing'], 2, ['bp', 'checkpointing']),
        (['accumulation', 'forward'], 1, ['bp', 'forward']),
    ],
)
def test_which_twins(kinds, images, expected):
    assert list(by_kind(detector(), images, kinds=kinds)) == expected


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
        for baseline in found:
            assert 'Pretrained' not in baseline.cfg.pretty_text and baseline.cfg.load_from is None
            assert baseline.cfg.model.bbox_head.init_cfg.type == 'Normal'
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'


@pytest.mark.parametrize('make', [classifier, local_detector])
def test_mixed_precision(make):
    found = baselines(in_mixed_precision(make()), 2)
    for baseline in found:
        assert baseline.cfg.optim_wrapper.type == 'AmpLocalOptimWrapper'
        assert baseline.cfg.optim_wrapper.dtype == 'bfloat16'
    step = found[0].build()
    seen = set()
    for module in step.model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    found[0].run(step, synthetic_batch(step.model, (2, 3, 64, 64)))
    assert seen == {torch.bfloat16}


class Plain(nn.Module):
    """A backbone without ``with_cp``, whose layers overwrite their inputs."""

    def __init__(self, width=16):
        super().__init__()

        def layer():
            return nn.Sequential(
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Tanh(),
                nn.Conv2d(width, width, 3, padding=1),
            )

        self.stem = nn.Conv2d(3, width, 1)
        self.layers = nn.ModuleList([layer(), layer()])
        self.last = layer()

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def test_layers_without_the_option():
    images = torch.rand(2, 3, 64, 64)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = Plain()
        if checkpointed:
            assert checkpoint_layers(net) == ['layers.0', 'layers.1', 'last']
        peak = measure_step(lambda net=net: net(images).square().mean().backward()).peak_bytes
        found.append((peak, [p.grad for p in net.parameters()]))
    (bp_peak, expected), (peak, grads) = found
    assert peak < 0.85 * bp_peak
    torch.testing.assert_close(grads, expected)
    assert all(grad is not None for grad in grads)


def test_nothing_to_checkpoint():
    with pytest.raises(LocalLearningError, match='Linear has no layers.*leave checkpointing out'):
        checkpoint_layers(nn.Linear(1, 1))


@pytest.mark.parametrize(
    'backbone, expected',
    [
        (dict(type='ResNet', depth=18), True),
        (dict(type='mmdet.ResNeXt', depth=50), True),
        (dict(type='ResNet_CIFAR', depth=18), True),
        (dict(type='VGG', depth=11), False),
        (dict(type=Plain), False),
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
