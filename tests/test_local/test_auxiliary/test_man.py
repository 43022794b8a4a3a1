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
from ..test_partition.family_checks import class_batch
from ..test_partition.family_checks import classifier as class_model
from .places import (
    NUM_CLASSES,
    RESNET32,
    assert_equal_at,
    batch_norm,
    map_at,
    negative_log_share,
    place,
    size_of,
    step_with,
    unsettle,
)

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
    return place(index, copy_block=lambda path: deepcopy(backbone.get_submodule(path)), **changes)


def man(index, backbone, **settings):
    return MAN(
        at(index, backbone),
        **dict(dict(host=dict(type='Greedy'), num_classes=NUM_CLASSES), **settings),
    )


def plus(index, backbone, **settings):
    return MANPlusPlus(
        at(index, backbone),
        **dict(dict(host=dict(type='Greedy'), num_classes=NUM_CLASSES), **settings),
    )


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


def combined(auxiliary, x):
    """What the host sees, written out."""
    learned, averaged = (plain_block(block, x) for block in (auxiliary.learned, auxiliary.averaged))
    if isinstance(auxiliary, MAN):
        return learned + averaged
    return auxiliary.share * learned + (2 - auxiliary.share) * averaged


@pytest.mark.parametrize('make', [man, plus])
@pytest.mark.parametrize('index, path', [(3, 'block4'), (5, 'block6'), (14, 'block15')])
def test_a_module_learns_through_two_copies_of_the_next_block(index, path, make):
    backbone = Backbone()
    auxiliary, x = make(index, backbone), map_at(index)
    for part in (auxiliary.learned, auxiliary.averaged, auxiliary.host):
        unsettle(part)
    if make is plus:
        assert auxiliary.share == 1
        with torch.no_grad():
            auxiliary.share.fill_(0.6)
    assert auxiliary.paths == (path,)
    expected = plain_greedy(auxiliary.host.fc, combined(auxiliary, x))
    loss = auxiliary.loss(x, {}, step_with(LABELS, backbone=backbone))['loss_cls']
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(expected, x, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(x.grad, gradient)


def test_a_second_block_is_learned_alone():
    backbone = Backbone()
    auxiliary, x = plus(5, backbone, blocks=2), map_at(5)
    for part in (auxiliary.learned, auxiliary.averaged, auxiliary.further, auxiliary.host):
        unsettle(part)
    assert auxiliary.paths == ('block6', 'block7') and len(auxiliary.further) == 1
    point = auxiliary.host.cut_point
    assert (point.channels, point.block, point.later[0].name) == (32, 7, 'block8')
    seen = plain_block(auxiliary.further[0], combined(auxiliary, x))
    loss = auxiliary.loss(x, {}, step_with(LABELS, backbone=backbone))['loss_cls']
    expected = plain_greedy(auxiliary.host.fc, seen)
    assert_equal_at(x, loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in auxiliary.further.parameters())
    # What follows the first block has no average.
    before = [p.clone() for p in auxiliary.further.parameters()]
    auxiliary.after_backward(step_with(LABELS, backbone=backbone))
    assert all(map(torch.equal, before, auxiliary.further.parameters()))


@pytest.mark.parametrize('make', [man, plus])
def test_the_average_follows_the_block(make):
    backbone, x = Backbone(), map_at(5)
    auxiliary = make(5, backbone, momentum=0.9)
    live, step = backbone.block6, step_with(LABELS, backbone=backbone)
    expected = {name: value.clone() for name, value in auxiliary.averaged.state_dict().items()}
    for _ in range(3):
        unsettle(live)
        live.shortcut.norm.running_mean.normal_()
        live.shortcut.norm.num_batches_tracked += 7
        auxiliary.loss(x, {}, step)
        auxiliary.after_backward(step)
        for name, value in live.state_dict().items():
            expected[name] = (
                value.clone() if name.endswith('tracked') else (0.9 * expected[name] + 0.1 * value)
            )
    found = auxiliary.averaged.state_dict()
    assert len(expected) == 18 and found['shortcut.bn.num_batches_tracked'] == 21
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize('make', [man, plus])
def test_copies_start_from_weights_of_their_own(make):
    backbone = Backbone()
    auxiliary = make(5, backbone)
    auxiliary.init_weights()
    live, learned, averaged = (
        block.residual[0].conv.weight
        for block in (backbone.block6, auxiliary.learned, auxiliary.averaged)
    )
    for a, b in ((live, learned), (live, averaged), (learned, averaged)):
        assert not torch.allclose(a, b)
    assert averaged.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert (auxiliary.averaged.residual[0].norm.weight == 1).all()


def test_the_average_reads_and_writes_nothing_else():
    backbone, x = Backbone(), map_at(5)
    auxiliary, step = man(5, backbone), step_with(LABELS, backbone=backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    auxiliary.loss(x, {}, step)['loss_cls'].backward()
    auxiliary.after_backward(step)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None for p in (*backbone.parameters(), *auxiliary.averaged.parameters()))
    assert x.grad.abs().sum() > 0
    # The running statistics are the block's, though a batch has passed: zeros here.
    own = auxiliary.averaged.residual[0].norm
    assert (own.running_mean == 0).all() and own.track_running_stats


@pytest.mark.parametrize('make', [man, plus])
def test_what_is_trained(make):
    backbone, x = Backbone(), map_at(3)
    backbone.requires_grad_(False)
    auxiliary = make(3, backbone)
    auxiliary.loss(x, {}, step_with(LABELS, backbone=backbone))['loss_cls'].backward()
    trained = {name.split('.')[0] for name, p in auxiliary.named_parameters() if p.requires_grad}
    assert trained == {'learned', 'host'} | ({'share'} if make is plus else set())
    for name, p in auxiliary.named_parameters():
        assert (p.grad is not None) == (name.split('.')[0] in trained), name


def test_norms_that_the_backbone_keeps_in_evaluation_mode():
    backbone, x = Backbone(), map_at(5)
    auxiliary, step = man(5, backbone), step_with(LABELS, backbone=backbone)
    for module in backbone.block6.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.running_var.uniform_(0.5, 2.0)
    auxiliary.averaged.load_state_dict(backbone.block6.state_dict())
    auxiliary.learned.load_state_dict(backbone.block6.state_dict())
    auxiliary.train()
    expected = plain_greedy(auxiliary.host.fc, 2 * backbone.block6(x))
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
    later = (LaterBlock('block15', 2, 16, 4, path='block15'),)
    auxiliary = kind(
        at(14, backbone, channels=16, later=later),
        host=dict(type='Greedy'),
        num_classes=NUM_CLASSES,
    )
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
    assert (point.channels, point.block, point.later[0].name) == (16, 3, 'block4')
    deep = man(12, backbone, host=dict(type='AugLocal', max_depth=4))
    assert [block.name for block in deep.host.picks] == ['block14', 'block15']


def test_parameters():
    block = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 6 * 32
    assert size_of(man(5, Backbone(), num_classes=10)) == 2 * block + 330
    assert size_of(plus(5, Backbone(), num_classes=10)) == 2 * block + 1 + 330


@pytest.mark.parametrize('make', [man, plus])
def test_weights_of_auxiliary_and_host_multiply(make):
    backbone, x = Backbone(), map_at()
    step = step_with(LABELS, backbone=backbone)

    def loss(**settings):
        torch.manual_seed(0)
        return make(3, backbone, **settings).loss(x, {}, step)['loss_cls']

    torch.testing.assert_close(
        loss(loss_weight=2.0, host=dict(type='Greedy', loss_weight=3.0)),
        6 * loss(host=dict(type='Greedy')),
    )


@pytest.mark.parametrize('method', ['MAN', 'MAN++'])
def test_a_detector_with_fbas_own_method_as_host(method):
    """Nothing in the two is about classes."""
    model = build(
        retinanet(num_modules='stages', auxiliary=dict(type=method, host=dict(type='SLM')))
    )
    trainer = Trainer(model)
    gradients = trainer.gradients(batch())
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any('averaged' in name for name in gradients)
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize(
    'kwargs',
    [dict(), dict(apply='eager'), dict(clip_grad=dict(max_norm=1.0))],
    ids=['end', 'eager', 'clipped'],
)
def test_optimizers_pass_over_the_average(kwargs):
    """After each iteration it is where the block was before it."""
    cfg = localize(
        classifier('BN'),
        'stages',
        auxiliary=dict(type='MAN', host=dict(type='Greedy'), num_classes=5, momentum=0.0),
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.init_weights()
    trainer = Trainer(
        model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), **kwargs
    )
    data = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(4)],
        data_samples=step_with([0, 1, 2, 3]).data_samples,
    )
    for _ in range(2):
        before = {n: p.clone() for n, p in model.backbone.backbone.layer2[0].named_parameters()}
        trainer.step(data)
        averaged = dict(model.backbone.auxiliary[0].averaged.named_parameters())
        now = dict(model.backbone.backbone.layer2[0].named_parameters())
        for name, value in before.items():
            assert torch.equal(averaged[name], value), name
            assert not torch.equal(now[name], value), name


VIT = dict(
    type='mmpretrain.VisionTransformer',
    img_size=16,
    patch_size=8,
    arch=dict(embed_dims=12, num_layers=8, num_heads=3, feedforward_channels=24),
)


def vit(**settings):
    """A small ViT in 4 modules, cut as MAN++'s authors do: the stem and 2 layers, then 2 each."""
    settings = dict(dict(num_classes=NUM_CLASSES, blocks=2, host=dict(type='Readout')), **settings)
    backbone = MODELS.build(
        dict(
            type='LocalBackbone',
            backbone=VIT,
            num_modules=[3, 2, 2, 2],
            auxiliary=dict(type='MAN++', **settings),
        )
    )
    torch.manual_seed(0)
    backbone.init_weights()
    return backbone


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / ((centred**2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    )


def plain_layer(layer, x):
    """A transformer layer, written out."""
    (images, tokens, channels), heads = x.shape, layer.attn.num_heads
    qkv = layer_norm(x, layer.ln1) @ layer.attn.qkv.weight.T + layer.attn.qkv.bias
    query, key, value = qkv.view(images, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = (query @ key.transpose(-2, -1) / (channels / heads) ** 0.5).exp()
    mixed = (scores / scores.sum(-1, keepdim=True)) @ value
    mixed = mixed.transpose(1, 2).reshape(images, tokens, channels)
    x = x + mixed @ layer.attn.proj.weight.T + layer.attn.proj.bias
    first, last = layer.ffn.layers[0][0], layer.ffn.layers[1]
    hidden = layer_norm(x, layer.ln2) @ first.weight.T + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + hidden @ last.weight.T + last.bias


@pytest.mark.parametrize('index', [0, 2])
def test_vision_transformers_as_released(index):
    """Two copied layers, the first with its average, then norm, class token and classifier."""
    backbone = vit()
    auxiliary = backbone.auxiliary[index]
    assert auxiliary.paths == (f'layers.{2 * index + 2}', f'layers.{2 * index + 3}')
    unsettle(auxiliary)
    x = torch.randn(6, 5, 12, requires_grad=True)
    step = step_with(LABELS, backbone=backbone.backbone)
    learned, averaged = (plain_layer(layer, x) for layer in (auxiliary.learned, auxiliary.averaged))
    seen = auxiliary.share * learned + (2 - auxiliary.share) * averaged
    seen = plain_layer(auxiliary.further[0], seen)
    token = layer_norm(seen[:, 0], auxiliary.host.output.norm)
    logits = token @ auxiliary.host.fc.weight.T + auxiliary.host.fc.bias
    loss = auxiliary.loss(x, {}, step)['loss_cls']
    assert_equal_at(x, loss, negative_log_share(logits, LABELS))
    torch.testing.assert_close(auxiliary.logits(x, {}, step), logits)


def test_copies_in_vision_transformers_start_as_released():
    """From a truncated normal distribution of deviation 0.02, without a bias."""
    auxiliary = vit().auxiliary[0]
    parts = (auxiliary.learned, auxiliary.averaged, auxiliary.further, auxiliary.host)
    layers = [one for part in parts for one in part.modules() if isinstance(one, nn.Linear)]
    assert len(layers) == 3 * 4 + 1 and all(layer.bias.eq(0).all() for layer in layers)
    drawn = torch.cat([layer.weight.flatten() for layer in layers])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05) and len(drawn) > 2000
    assert not torch.equal(auxiliary.learned.attn.qkv.weight, auxiliary.averaged.attn.qkv.weight)


@pytest.mark.parametrize('host', ['Readout', 'Greedy', 'SLM'])
def test_hosts_behind_a_transformers_layers_train(host):
    auxiliary = dict(type='MAN++', num_classes=NUM_CLASSES, blocks=2, host=dict(type=host))
    if host == 'SLM':
        cfg = class_model(VIT, None, 12)
        auxiliary['host']['head'] = dict(type=cfg['type'], head=cfg['head'])
    model = build(class_model(VIT, [3, 2, 2, 2], 12, auxiliary=auxiliary))
    gradients = Trainer(model).gradients(class_batch(16))
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.isfinite(g).all() for g in gradients.values())


# What a user gets wrong


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(momentum=1.1), 'auxiliary.momentum=1.1: give a finite number from 0 to 1'),
        (dict(num_classes=None), "num_classes is missing: .* beside host=dict\\(type='Greedy'\\)"),
        (dict(host=dict(depth=3)), 'host=.*: give the config of an auxiliary network'),
        (dict(host='DGL'), 'host=DGL: give the config of an auxiliary network'),
        (dict(loss_weight=0), 'auxiliary.loss_weight=0: '),
    ],
)
@pytest.mark.parametrize('kind', [MAN, MANPlusPlus])
def test_configs_that_are_refused(kind, settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        kind(
            at(3, Backbone()),
            **dict(dict(host=dict(type='Greedy'), num_classes=NUM_CLASSES), **settings),
        )
    assert '\n' not in str(caught.value)


def test_a_block_that_is_no_submodule():
    later = (LaterBlock('stage5', 2, 64, 4, path=None),)
    with pytest.raises(LocalLearningError, match='stage5 cannot be copied.*take the host alone'):
        MAN(at(3, Backbone(), later=later), num_classes=5)


@pytest.mark.parametrize(
    'index, blocks, message',
    [
        (14, 2, 'blocks=2, and 1 follow module 15: give fewer'),
        (3, 0, 'auxiliary.blocks=0: give a number of blocks'),
    ],
)
def test_numbers_of_blocks_that_are_refused(index, blocks, message):
    with pytest.raises(LocalLearningError, match=message):
        plus(index, Backbone(), blocks=blocks)


def test_a_host_that_needs_a_block_behind_the_last():
    with pytest.raises(LocalLearningError, match='no block follows .*host'):
        man(14, Backbone(), host=dict(type='MAN', num_classes=5))


def test_registered_names():
    assert MODELS.get('MAN') is MAN and MODELS.get('MAN++') is MANPlusPlus
