"""MAN and MAN++: arithmetic of the average, what it reaches, and the host behind it."""
from copy import deepcopy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from fba_mm import LocalLearningError, localize
from fba_mm.local.auxiliary.man import MAN, MANPlusPlus
from fba_mm.local.partition import LaterBlock
from fba_mm.local.partition.resnet import ReducedResidualBlock
from fba_mm.preflight.building import build_model

from ...conftest import batch, build, retinanet
from ...local_training import Trainer
from ...test_analysis.small_configs import classifier
from .places import (NUM_CLASSES, RESNET32, batch_norm, map_at, negative_log_share, place,
                     size_of, step_with, unsettle)

LABELS = [0, 1, 2, 3, 4, 0]


class Backbone(nn.Module):
    """The blocks behind the stem of a ResNet-32."""

    def __init__(self):
        super().__init__()
        inputs = [(stage, 16, stride) for stage, _, stride in RESNET32[:1]] + RESNET32[:-1]
        for i, ((_, before, fine), (_, after, coarse)) in enumerate(zip(inputs, RESNET32)):
            self.add_module(f'block{i}', ReducedResidualBlock(before, after, coarse // fine))
        unsettle(self)


def at(index, backbone, **changes):
    return place(
        index, copy_block=lambda path: deepcopy(backbone.get_submodule(path)), **changes)


def man(index, backbone, **settings):
    return MAN(at(index, backbone), **dict(
        dict(host=dict(type='Greedy'), num_classes=NUM_CLASSES), **settings))


def plus(index, backbone, **settings):
    return MANPlusPlus(at(index, backbone), **dict(dict(num_classes=NUM_CLASSES), **settings))


def plain_block(block, x):
    """A residual block with the batch's statistics, written out."""
    first, last = block.residual
    stride = first.conv.stride
    y = F.conv2d(x, first.conv.weight, stride=stride, padding=1)
    y = batch_norm(y, first.norm).clamp(min=0)
    y = batch_norm(F.conv2d(y, last.conv.weight, padding=1), last.norm)
    if not isinstance(block.shortcut, nn.Identity):
        conv = block.shortcut.conv
        x = batch_norm(F.conv2d(x, conv.weight, stride=stride), block.shortcut.norm)
    return (x + y).clamp(min=0)


def plain_greedy(fc, y):
    return negative_log_share(y.mean((2, 3)) @ fc.weight.T + fc.bias, LABELS)


@pytest.mark.parametrize('index, path', [(3, 'block4'), (5, 'block6'), (14, 'block15')])
def test_man_learns_through_the_next_block(index, path):
    backbone = Backbone()
    auxiliary, x = man(index, backbone), map_at(index)
    unsettle(auxiliary.host)
    with torch.no_grad():
        auxiliary.bias.copy_(torch.randn_like(auxiliary.bias))
    # Later than the auxiliary network was built, as initialization and checkpoints are.
    unsettle(backbone)
    losses = auxiliary.loss(x, {}, step_with(LABELS, backbone=backbone))
    y = plain_block(backbone.get_submodule(path), x) + auxiliary.bias
    torch.testing.assert_close(losses['loss_cls'], plain_greedy(auxiliary.host.fc, y))


@pytest.mark.parametrize('index, path', [(3, 'block6'), (5, 'block6'), (12, 'block13')])
def test_man_plus_plus_learns_through_the_next_stages_first_block(index, path):
    backbone = Backbone()
    auxiliary, x = plus(index, backbone), map_at(index)
    unsettle(backbone)
    step = step_with(LABELS, backbone=backbone)
    block = plain_block(backbone.get_submodule(path), x)
    assert auxiliary.share == 1
    # At first both are the block.
    torch.testing.assert_close(
        auxiliary.loss(x, {}, step)['loss_cls'], plain_greedy(auxiliary.host.fc, 2 * block))
    unsettle(auxiliary.learned)
    with torch.no_grad():
        auxiliary.share.fill_(.6)
    y = .6 * plain_block(auxiliary.learned, x) + 1.4 * block
    torch.testing.assert_close(
        auxiliary.loss(x, {}, step)['loss_cls'], plain_greedy(auxiliary.host.fc, y))


@pytest.mark.parametrize('make', [man, plus])
def test_the_average_follows_the_block(make):
    backbone, x = Backbone(), map_at(5)
    auxiliary = make(5, backbone, momentum=.9)
    live, step = backbone.block6, step_with(LABELS, backbone=backbone)
    seen = []
    for _ in range(3):
        unsettle(live)
        live.shortcut.norm.running_mean.normal_()
        live.shortcut.norm.num_batches_tracked += 7
        seen.append({name: value.clone() for name, value in live.state_dict().items()})
        auxiliary.loss(x, {}, step)
    expected = {
        name: .9 * (.9 * seen[0][name] + .1 * seen[1][name]) + .1 * seen[2][name]
        for name in seen[0] if not name.endswith('tracked')
    }
    found = auxiliary.averaged.state_dict()
    assert auxiliary.updates == 3 and len(expected) == 15
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert found['shortcut.bn.num_batches_tracked'] == 21


def test_the_average_reads_and_writes_nothing_else():
    backbone, x = Backbone(), map_at(5)
    auxiliary, step = man(5, backbone), step_with(LABELS, backbone=backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    auxiliary.loss(x, {}, step)['loss_cls'].backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in (*backbone.parameters(), *auxiliary.averaged.parameters()))
    assert x.grad.abs().sum() > 0 and auxiliary.bias.grad.abs().sum() > 0
    # The running statistics are the block's, though a batch has passed.
    norm, own = backbone.block6.residual[0].norm, auxiliary.averaged.residual[0].norm
    assert torch.equal(norm.running_mean, own.running_mean) and own.track_running_stats


@pytest.mark.parametrize('make', [man, plus])
def test_what_is_trained(make):
    backbone, x = Backbone(), map_at(3)
    backbone.requires_grad_(False)
    auxiliary = make(3, backbone)
    auxiliary.loss(x, {}, step_with(LABELS, backbone=backbone))['loss_cls'].backward()
    trained = {name.split('.')[0] for name, p in auxiliary.named_parameters() if p.requires_grad}
    assert trained == ({'bias', 'host'} if make is man else {'share', 'learned', 'host'})
    for name, p in auxiliary.named_parameters():
        assert (p.grad is not None) == (name.split('.')[0] in trained), name


def test_norms_that_the_backbone_keeps_in_evaluation_mode():
    backbone, x = Backbone(), map_at(5)
    auxiliary, step = man(5, backbone, momentum=0.), step_with(LABELS, backbone=backbone)
    for module in backbone.block6.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.running_var.uniform_(.5, 2.)
    auxiliary.train()
    expected = plain_greedy(auxiliary.host.fc, backbone.block6(x))
    torch.testing.assert_close(auxiliary.loss(x, {}, step)['loss_cls'], expected)


class PreActivation(nn.Module):
    """A block that begins by writing into its input."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.relu(self.conv(self.relu(x)))


@pytest.mark.parametrize('kind', [MAN, MANPlusPlus])
def test_blocks_do_not_write_into_the_modules_output(kind):
    backbone = nn.Module()
    backbone.block15 = PreActivation()
    later = (LaterBlock('block15', 2, 16, 4, path='block15'), )
    auxiliary = kind(at(14, backbone, channels=16, later=later),
                     host=dict(type='Greedy'), num_classes=NUM_CLASSES)
    x = torch.randn(6, 16, 4, 4, requires_grad=True)
    output = x * 1
    auxiliary.loss(output, {}, step_with(LABELS, backbone=backbone))['loss_cls'].backward()
    assert torch.equal(output, x) and x.grad.abs().sum() > 0
    assert backbone.block15.relu.inplace


def test_the_hosts_place_is_behind_the_block():
    backbone = Backbone()
    point = man(5, backbone).host.cut_point
    assert (point.channels, point.stride, point.stage, point.module) == (32, 2, 1, 5)
    assert [block.name for block in point.later] == [f'block{i}' for i in range(7, 16)]
    point = plus(2, backbone).host.cut_point
    assert (point.channels, point.later[0].name) == (32, 'block7')
    deep = man(12, backbone, host=dict(type='AugLocal', max_depth=4))
    assert [block.name for block in deep.host.picks] == ['block14', 'block15']


def test_parameters():
    block = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 6 * 32
    auxiliary = man(5, Backbone(), host=dict(type='Greedy'), num_classes=10)
    assert size_of(auxiliary) == block + 32 + 330
    assert size_of(plus(5, Backbone(), num_classes=10)) == 2 * block + 1 + 330


@pytest.mark.parametrize('make', [man, plus])
def test_weights_of_auxiliary_and_host_multiply(make):
    backbone, x = Backbone(), map_at()
    step = step_with(LABELS, backbone=backbone)

    def loss(**settings):
        torch.manual_seed(0)
        return make(3, backbone, **settings).loss(x, {}, step)['loss_cls']

    torch.testing.assert_close(
        loss(loss_weight=2., host=dict(type='Greedy', loss_weight=3.)),
        6 * loss(host=dict(type='Greedy')))


@pytest.mark.parametrize('method', ['MAN', 'MAN++'])
def test_a_detector_with_fbas_own_method_as_host(method):
    """Nothing in the two is about classes."""
    model = build(retinanet(
        num_modules='stages', auxiliary=dict(type=method, host=dict(type='SLM'))))
    trainer = Trainer(model)
    gradients = trainer.gradients(batch())
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any('averaged' in name for name in gradients)
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize('kwargs', [dict(), dict(apply='eager'), dict(clip_grad=dict(max_norm=1.))],
                         ids=['end', 'eager', 'clipped'])
def test_optimizers_pass_over_the_average(kwargs):
    """After each iteration it is where the block was before it."""
    cfg = localize(classifier('BN'), 'stages', auxiliary=dict(
        type='MAN', host=dict(type='Greedy'), num_classes=5, momentum=0.))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.init_weights()
    trainer = Trainer(
        model, optimizer=lambda p: torch.optim.SGD(p, lr=.1, weight_decay=.1), **kwargs)
    data = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(4)],
        data_samples=step_with([0, 1, 2, 3]).data_samples)
    for _ in range(2):
        before = {n: p.clone() for n, p in model.backbone.backbone.layer2[0].named_parameters()}
        trainer.step(data)
        averaged = dict(model.backbone.auxiliary[0].averaged.named_parameters())
        now = dict(model.backbone.backbone.layer2[0].named_parameters())
        for name, value in before.items():
            assert torch.equal(averaged[name], value), name
            assert not torch.equal(now[name], value), name


# What a user gets wrong


@pytest.mark.parametrize('settings, message', [
    (dict(momentum=1.1), 'auxiliary.momentum=1.1: give 0 to 1'),
    (dict(num_classes=None), "num_classes is missing: .* beside host=dict\\(type='Greedy'\\)"),
    (dict(host=dict(depth=3)), "host=.*: give the config of an auxiliary network"),
    (dict(host='DGL'), "host=DGL: give the config of an auxiliary network"),
    (dict(loss_weight=0), 'auxiliary.loss_weight=0: '),
])
@pytest.mark.parametrize('kind', [MAN, MANPlusPlus])
def test_configs_that_are_refused(kind, settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        kind(at(3, Backbone()), **dict(
            dict(host=dict(type='Greedy'), num_classes=NUM_CLASSES), **settings))
    assert '\n' not in str(caught.value)


def test_a_block_that_is_no_submodule():
    later = (LaterBlock('stage5', 2, 64, 4, path=None), )
    with pytest.raises(LocalLearningError, match='stage5 cannot be copied.*take the host alone'):
        MAN(at(3, Backbone(), later=later), num_classes=5)


def test_a_host_that_needs_a_block_behind_the_last():
    with pytest.raises(LocalLearningError, match='no block follows .*host'):
        man(14, Backbone(), host=dict(type='MAN', num_classes=5))


def test_registered_names():
    assert MODELS.get('MAN') is MAN and MODELS.get('MAN++') is MANPlusPlus
