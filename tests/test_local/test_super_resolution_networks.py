"""Local learning of mmagic's networks for super-resolution: what holds for each of them."""

import copy
from functools import partial

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.nn import functional as F

from fba_mm import LocalLearningError, LocalOptimWrapper, localize
from fba_mm.analysis.memory import measure_step
from fba_mm.analysis.simulated_step import quiet, without_memory
from fba_mm.checkpoint import compare, export_checkpoint
from fba_mm.local.partition import IMAGES
from fba_mm.local.partition.reconstruction import FIRST_MAP
from fba_mm.localize import stock_form
from fba_mm.preflight.building import build_model
from fba_mm.preflight.training import check_training

from ..conftest import build
from ..local_training import Trainer
from ..super_resolution import editor, edsr, msrresnet, patches, rdn, rrdbnet, swinir

NETWORKS = [edsr, msrresnet, rrdbnet, rdn, swinir]
HEADS = {
    'own': dict(type='SLMReconstruction', channels=4),
    'skip': dict(type='SLMReconstruction', channels=4, skip=True),
    'shared': dict(type='SLMReconstruction', head='shared'),
}
# RDN's last layers can't be shared.
SERVED = [
    (network, head)
    for network in NETWORKS
    for head in HEADS
    if not (network is rdn and head == 'shared')
]

each_network = pytest.mark.parametrize('network', NETWORKS)
each_served = pytest.mark.parametrize('network, head', SERVED)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


@each_network
def test_one_module_trains_exactly_as_the_unwrapped_model(network):
    plain = build(editor(None, network=network))
    trainer = Trainer(build(editor(1, network=network)), LocalOptimWrapper, adam)
    optim_wrapper = OptimWrapper(adam(plain.parameters()))
    for seed in range(2):
        losses = plain.train_step(patches(seed=seed), optim_wrapper)
        assert trainer.step(patches(seed=seed)) == {k: float(v.detach()) for k, v in losses.items()}
    for a, b in zip(plain.parameters(), trainer.model.parameters()):
        assert torch.equal(a, b)


@each_network
def test_trained_on_the_same_forward_as_the_network(network):
    # The last module's loss is the network's: only gradients stop between modules.
    plain, model = build(editor(None, network=network)), build(editor('blocks', network=network))
    model.load_state_dict(plain.state_dict())
    found = Trainer(model).step(patches())['loss']
    data = plain.data_preprocessor(patches(), True)
    expected = float(plain(**data, mode='loss')['loss'].detach())
    assert found == pytest.approx(expected, rel=1e-6)


@each_served
def test_a_module_learns_from_its_own_loss_alone(network, head):
    model = build(editor(3, HEADS[head], network=network))
    local, trainer = model.generator, Trainer(model)
    before = trainer.gradients(patches())
    assert set(before) == {n for n, _ in model.named_parameters()}
    tail = {id(p) for p in local.segments[-1].parameters(local.backbone)}
    for k in range(local.num_modules - 1):
        local.auxiliary[k].loss_weight = 4.0  # A power of two: nothing is rounded otherwise.
        after = trainer.gradients(patches())
        local.auxiliary[k].loss_weight = 1.0
        own = {id(p) for p in local.local_parameters(k)}
        assert own & {id(p) for p in local.backbone.parameters()}
        for n, parameter in model.named_parameters():
            if id(parameter) in own:
                assert torch.equal(after[n], 4 * before[n]), (k, n)
            elif head == 'shared' and id(parameter) in tail:
                assert not torch.equal(after[n], before[n]), (k, n)
            else:
                assert torch.equal(after[n], before[n]), (k, n)


@each_served
def test_backward_now_is_one_backward_later(network, head):
    model = build(editor(4, HEADS[head], network=network))
    trainer = Trainer(model)
    expected = _deferred(model, model.data_preprocessor(patches(), True))
    found = trainer.gradients(patches())
    assert set(found) == set(expected)
    for n in found:
        assert torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-7), n


def _deferred(model, data):
    """All modules one after the other, detached by hand; one backward for the sum of losses."""
    local = model.generator
    net, images = local.backbone, data['inputs']
    target = data['data_samples'].gt_img
    x, kept, total = images, {IMAGES: images}, 0.0
    for k, module in enumerate(local.module_segments):
        x, kept = x.detach(), {name: feature.detach() for name, feature in kept.items()}
        for i in module:
            x = local.segments[i].advance(net, x, kept)
        out = x
        if k < local.num_modules - 1:
            auxiliary = local.auxiliary[k]
            out = auxiliary.block(x)
            if auxiliary.head is None:
                tail = local.segments[-1]
                out = tail.run(net, out, *(kept[name] for name in tail.reads))
            else:
                out = auxiliary.head(
                    out, kept[FIRST_MAP] if auxiliary.skip or k == 0 else None, images
                )
        total = total + (out - target).abs().mean()
    model.zero_grad()
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


@each_network
def test_stock_checkpoints_load_and_exported_ones_are_stock(network):
    stock, model = build(editor(None, network=network)), build(editor(3, network=network))
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    fit = compare(model, stock.state_dict())
    assert not (fit.missing or fit.mismatched or fit.unexpected)
    model.load_state_dict(stock.state_dict(), strict=True)
    data = stock.data_preprocessor(patches(10))

    def outputs(model):
        model.eval()
        return [
            s.output.pred_img
            for s in model(data['inputs'], copy.deepcopy(data['data_samples']), mode='predict')
        ]

    for a, b in zip(outputs(stock), outputs(model)):
        assert torch.equal(a, b)
    model.train()
    Trainer(model).step(patches())
    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))
    stock.load_state_dict(exported['state_dict'], strict=True)
    for a, b in zip(outputs(stock), outputs(model)):
        assert torch.equal(a, b)


@each_network
def test_the_first_map_is_banked_for_the_own_heads(network):
    logs = {}
    for scope in ('past', 'off'):
        trainer = Trainer(build(editor('blocks', HEADS['skip'], network=network)), scope=scope)
        losses = trainer.step(patches())
        logs[scope] = dict(trainer.log, **losses)
    assert logs['past'].keys() == logs['off'].keys()
    alike = {name for name in logs['past'] if logs['past'][name] == logs['off'][name]}
    # The network itself has what it skips, bank or not; the first module has made the map.
    assert {'local_1.loss', 'loss'} <= alike and 'local_3.loss' not in alike


@pytest.mark.slow
@pytest.mark.parametrize(
    'network, four, finest',
    [(msrresnet, 0.52, 0.42), (rrdbnet, 0.34, 0.2), (rdn, 0.39, 0.23), (swinir, 0.32, 0.16)],
)
def test_memory_below_back_propagation(network, four, finest):
    # Measured: 0.49 and 0.40, 0.32 and 0.18, 0.36 and 0.21, 0.29 and 0.14.
    peaks = {}
    for num_modules in (None, 4, 'blocks'):
        model = build(editor(num_modules, network=network, num_blocks=12, channels=16))
        data = patches(12, 8)
        if num_modules is None:
            optim_wrapper = OptimWrapper(adam(model.parameters()))
            step = partial(model.train_step, data, optim_wrapper)
        else:
            trainer = Trainer(model, optimizer=adam, apply='eager')
            optim_wrapper = trainer.optim_wrapper
            step = partial(trainer.step, data)

        step()
        peaks[num_modules] = measure_step(step, watch=[model, optim_wrapper.optimizer]).peak_bytes
    assert peaks[4] < four * peaks[None]
    assert peaks['blocks'] < finest * peaks[None]


STOCK = [
    'srgan_resnet/msrresnet_x4c64b16_1xb16-1000k_div2k.py',
    'esrgan/esrgan_psnr-x4c64b23g32_1xb16-1000k_div2k.py',
    'rdn/rdn_x3c64b16_1xb16-1000k_div2k.py',
    'swinir/swinir_x2s64w8d4e60_8xb4-lr2e-4-500k_div2k.py',
]


@pytest.mark.parametrize('name', STOCK)
def test_localize_a_stock_config_and_back(name):
    cfg = localize(f'mmagic::{name}', num_modules=4)
    assert cfg.model.generator.type == 'LocalBackbone'
    assert stock_form(cfg).model.generator.type == cfg.model.generator.backbone.type
    # What the data takes is not looked for here.
    cfg.train_dataloader = cfg.val_dataloader = dict()
    with quiet(), without_memory():
        model = build_model(cfg)
    assert model.generator.num_modules == 4
    assert isinstance(check_training(cfg, model), LocalOptimWrapper)


def test_the_last_layers_see_some_images_at_a_time():
    model = build(editor('blocks'))
    seen = []
    model.generator.backbone.conv_after_body.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    model.generator.backbone.body[0].register_forward_pre_hook(
        lambda module, args: seen.append(-len(args[0]))
    )
    trainer = Trainer(model)
    expected = trainer.gradients(patches(images=6))
    # Once for the image, once for the gradients.
    assert seen == [-6, 2, 2, 2, 2, 2, 2]
    whole = build(
        dict(editor('blocks'), generator=dict(editor('blocks')['generator'], head_batch_size=6))
    )
    found = Trainer(whole).gradients(patches(images=6))
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7), name


ADDED = [
    # network, residual, what a head without details makes of the images
    (edsr, None, 'bicubic'),
    (edsr, 'bilinear', 'bilinear'),
    (edsr, 'network', None),
    (msrresnet, None, 'bilinear'),
    (msrresnet, 'network', 'bilinear'),
    (msrresnet, 'bicubic', 'bicubic'),
]


@pytest.mark.parametrize('network, residual, mode', ADDED)
def test_what_the_own_head_adds_details_to(network, residual, mode):
    auxiliary = dict(type='SLMReconstruction', residual=residual)
    head = build(editor(2, auxiliary, network=network)).generator.auxiliary[0].head
    for parameter in head.conv_last.parameters():
        torch.nn.init.zeros_(parameter)
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = head(torch.rand(2, 8, 6, 6), None, images)
    if mode is None:
        expected = head.mean.expand_as(found)
    else:
        expected = F.interpolate(images, scale_factor=2, mode=mode)
    torch.testing.assert_close(found, expected)


def test_the_last_layers_of_rdn_cannot_be_shared():
    with pytest.raises(LocalLearningError, match="fuse the outputs of all its blocks.*head='own'"):
        build(editor(2, HEADS['shared'], network=rdn))
