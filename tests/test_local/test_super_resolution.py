"""Super-resolution by local learning: EDSR in modules, the first map in the bank."""

import copy
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from fba_mm import AmpLocalOptimWrapper, FBAHook, LocalLearningError, LocalOptimWrapper, localize
from fba_mm.analysis.memory import measure_step
from fba_mm.checkpoint import check_fit
from fba_mm.local.auxiliary.reconstruction import SLMReconstruction
from fba_mm.local.partition.edsr import FIRST_MAP
from fba_mm.localize import stock_form
from fba_mm.preflight.training import check_training

from ..conftest import build, retinanet
from ..local_training import Trainer
from ..super_resolution import editor, patches

AUXILIARIES = {
    'own': dict(type='SLMReconstruction', channels=4),
    'shared': dict(type='SLMReconstruction', head='shared'),
    'plain': dict(type='SLMReconstruction', channels=4, residual='network'),
    'skip': dict(type='SLMReconstruction', channels=4, skip=True),
}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


# What the wrapped model computes


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_one_module_trains_exactly_as_the_unwrapped_model(scale):
    plain = build(editor(None, scale=scale))
    trainer = Trainer(build(editor(1, scale=scale)), LocalOptimWrapper, adam)
    optim_wrapper = OptimWrapper(adam(plain.parameters()))
    for seed in range(3):
        data = patches(scale=scale, seed=seed)
        losses = plain.train_step(data, optim_wrapper)
        assert trainer.step(patches(scale=scale, seed=seed)) == {
            k: float(v.detach()) for k, v in losses.items()
        }
    for a, b in zip(plain.parameters(), trainer.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize('num_modules', [1, 3, 'blocks'])
def test_returns_one_image_in_training_and_evaluation(num_modules):
    model = build(editor(num_modules))
    returned = []
    model.generator.register_forward_hook(lambda module, args, output: returned.append(output))
    Trainer(model).step(patches())
    # Asked once for each module: all but the last answer with an image of their own.
    assert len(returned) == model.generator.num_modules
    assert all(image.shape == (2, 3, 24, 24) for image in returned)
    x = torch.rand(2, 3, 12, 12)
    model.train()
    with torch.no_grad():
        assert torch.equal(model(x, mode='tensor'), model.generator.backbone(x))
    model.eval()
    assert torch.equal(model(x, mode='tensor'), model.generator.backbone(x))


@pytest.mark.parametrize('name', AUXILIARIES)
def test_mixed_precision(name):
    losses = []
    for num_modules in (1, 'blocks'):
        trainer = Trainer(
            build(editor(num_modules, AUXILIARIES[name])),
            AmpLocalOptimWrapper,
            dtype='bfloat16',
            apply='eager',
        )
        losses.append(trainer.step(patches()))
    assert losses[0] == losses[1]
    assert len(trainer.log) == 5 and all(0 < loss < 1 for loss in trainer.log.values())


def test_a_copy_runs_its_own_layers():
    model = build(editor('blocks'))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.generator.backbone.parameters():
            parameter.mul_(0.5)
    expected = copy.deepcopy(twin.generator.backbone)
    x = torch.rand(1, 3, 8, 8)
    kept = {}
    out = x
    for segment in twin.generator.segments:
        out = segment.advance(twin.generator.backbone, out, kept)
    assert torch.equal(out, expected(x))


def test_images_in_a_dict():
    trainer = Trainer(build(editor(3)))
    expected = trainer.gradients(patches())
    data = patches()
    data['inputs'] = [dict(img=image) for image in data['inputs']]
    found = trainer.gradients(data)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize('name', AUXILIARIES)
@pytest.mark.parametrize('scope', ['past', 'off'])
def test_losses_fall(name, scope):
    trainer = Trainer(build(editor(3, AUXILIARIES[name], channels=16)), optimizer=adam, scope=scope)
    first = trainer.step(patches()), dict(trainer.log)
    for _ in range(60):
        last = trainer.step(patches())
    assert last['loss'] < 0.95 * first[0]['loss']
    for i in (1, 2):
        assert trainer.log[f'local_{i}.loss'] < 0.97 * first[1][f'local_{i}.loss']


# Gradients


@pytest.mark.parametrize('name', AUXILIARIES)
@pytest.mark.parametrize('num_modules', [2, 'blocks'])
def test_backward_now_is_one_backward_later(name, num_modules):
    model = build(editor(num_modules, AUXILIARIES[name]))
    trainer = Trainer(model)
    expected = _deferred(model, model.data_preprocessor(patches(), True))
    found = trainer.gradients(patches())
    assert set(found) == set(expected)
    for n in found:
        assert torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-7), n


def _deferred(model, data):
    """EDSR written out in modules that are detached by hand; one backward for the sum."""
    local = model.generator
    net, image = local.backbone, data['inputs']
    target = data['data_samples'].gt_img
    x, first, total = image, None, 0.0
    for k, module in enumerate(local.module_segments):
        x, first = x.detach(), None if first is None else first.detach()
        for i in module:
            if i == 0:
                x = first = net.conv_first((x - net.mean) / net.std)
            elif i <= len(net.body):
                x = net.body[i - 1](x)
            else:
                x = _tail(net, x, first)
        out = x
        if k < local.num_modules - 1:
            auxiliary = local.auxiliary[k]
            out = auxiliary.block(x)
            out = (
                _tail(net, out, first)
                if auxiliary.head is None
                else auxiliary.head(out, first if auxiliary.skip or k == 0 else None, image)
            )
        total = total + (out - target).abs().mean()
    model.zero_grad()
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _tail(net, x, first):
    return net.conv_last(net.upsample(net.conv_after_body(x) + first)) * net.std + net.mean


@pytest.mark.parametrize('name', AUXILIARIES)
@pytest.mark.parametrize('num_modules', [1, 'blocks'])
def test_eager_steps_are_those_at_the_end(name, num_modules):
    results = []
    for apply in ('end', 'eager'):
        trainer = Trainer(
            build(editor(num_modules, AUXILIARIES[name])), optimizer=adam, apply=apply
        )
        losses = [trainer.step(patches(seed=i)) for i in range(3)]
        results.append((losses, [p.detach() for p in trainer.model.parameters()]))
    (losses, end), (eager_losses, eager) = results
    if name != 'shared' or num_modules == 1:
        assert losses == eager_losses
        assert all(torch.equal(a, b) for a, b in zip(end, eager))
    else:  # Gradients of shared layers are added up in another order.
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(end, eager))


# The bank


def test_the_bank_holds_the_first_map_itself():
    model = build(editor('blocks'))
    trainer = Trainer(model)
    seen, run_tail = {}, []
    conv_first = []
    model.generator.backbone.conv_first.register_forward_hook(
        lambda module, args, output: conv_first.append(output)
    )
    tail = model.generator.segments[-1]

    def watch_tail(backbone, x, first_map):
        run_tail.append(first_map)
        return tail.run(backbone, x, first_map)

    model.generator.segments[-1] = copy.copy(tail)
    object.__setattr__(model.generator.segments[-1], 'run', watch_tail)
    image = SLMReconstruction.image

    def watch(self, x, step):
        own, banked = step.kept.get(FIRST_MAP), step.bank.get(FIRST_MAP)
        seen[self.cut_point.module] = own, banked
        return image(self, x, step)

    with mock.patch.object(SLMReconstruction, 'image', watch):
        trainer.step(patches())
    # Module 1 makes the map and learns through it; the others see it without its graph.
    own, banked = seen.pop(0)
    assert own is conv_first[0] and banked is None
    assert len(seen) == 4
    for own, banked in (*seen.values(), (None, run_tail[0])):
        assert own is None and not banked.requires_grad
        assert banked.untyped_storage()._cdata == conv_first[0].untyped_storage()._cdata
    assert trainer.hook.bank.get(FIRST_MAP) is None


def test_without_a_bank_modules_lack_the_first_map_and_the_network_has_it():
    trainer = Trainer(build(editor('blocks', AUXILIARIES['skip'])), scope='off')
    off = trainer.step(patches()), dict(trainer.log)
    trainer = Trainer(build(editor('blocks', AUXILIARIES['skip'])), scope='past')
    past = trainer.step(patches()), dict(trainer.log)
    assert off[0] == past[0]
    assert off[1]['local_1.loss'] == past[1]['local_1.loss']  # Its own map, not the bank's.
    assert off[1]['local_2.loss'] != past[1]['local_2.loss']
    # Own heads take it from there only if they are told to.
    for scope in ('past', 'off'):
        trainer = Trainer(build(editor('blocks', AUXILIARIES['own'])), scope=scope)
        assert (trainer.step(patches()), trainer.log) == off


def test_the_bank_does_not_starve_a_module():
    norms = {}
    for scope in ('past', 'off'):
        model = build(editor('blocks', AUXILIARIES['skip'], channels=16))
        grads = Trainer(model, scope=scope).gradients(patches())
        norms[scope] = [
            torch.cat([g.flatten() for n, g in grads.items() if f'backbone.body.{i}.' in n]).norm()
            for i in range(4)
        ]
    for past, off in zip(norms['past'], norms['off']):
        assert past > 0.5 * off


# Memory


@pytest.fixture(scope='module')
def peak():
    """``peak(num_modules, ...)`` in MB, each measured once."""
    known = {}

    def measure(num_modules, scale=2, num_blocks=16, head='own'):
        key = num_modules, scale, num_blocks, head
        if key not in known:
            auxiliary = dict(type='SLMReconstruction', head=head)
            model = build(
                editor(num_modules, auxiliary, scale=scale, num_blocks=num_blocks, channels=64)
            )
            data = patches(24, 4, scale)
            if num_modules is None:
                optim_wrapper = OptimWrapper(sgd(model.parameters()))

                def step():
                    model.train_step(data, optim_wrapper)
            else:
                trainer = Trainer(model, optimizer=sgd, apply='eager')

                def step():
                    trainer.step(data)

            step()
            known[key] = measure_step(step, watch=[model]).peak_bytes / 1e6
        return known[key]

    return measure


@pytest.mark.slow
def test_below_back_propagation(peak):
    # Measured with 16 patches of 48x48: 0.36 and 0.22 at x2, 0.33 and 0.25 at x4.
    scale, four, finest = 2, 0.4, 0.3
    bp = peak(None, scale)
    assert peak(1, scale) == pytest.approx(bp, rel=0.01)
    assert peak(4, scale) < four * bp
    assert peak('blocks', scale) < finest * bp


@pytest.mark.slow
def test_the_networks_own_head_takes_more(peak):
    assert peak('blocks') < peak('blocks', head='shared') < 0.5 * peak(None)


@pytest.mark.slow
def test_does_not_grow_with_depth(peak):
    assert peak('blocks', num_blocks=32) == pytest.approx(peak('blocks'), rel=0.02)
    assert peak(None, num_blocks=32) > 1.5 * peak(None)


# Checkpoints and configs


@pytest.mark.parametrize('num_modules', [1, 3])
@pytest.mark.parametrize('wrapped', [None, 3])
@pytest.mark.parametrize('scale', [3, 4])
def test_training_for_another_scale_starts_from_a_checkpoint(num_modules, wrapped, scale, tmp_path):
    path = str(tmp_path / 'x2.pth')
    source = build(editor(wrapped))
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(dict(state_dict=source.state_dict()), path)
    model = build(editor(num_modules, scale=scale))
    check_fit(model, path, 'load')
    with pytest.raises(LocalLearningError, match='does not fit the model'):
        check_fit(model, path, 'test')
    with pytest.raises(LocalLearningError, match='does not fit the model'):
        check_fit(build(editor(num_modules, scale=scale, channels=4)), path, 'load')
    load_checkpoint(model, path, map_location='cpu', strict=False)
    source = source.generator if wrapped is None else source.generator.backbone
    for part in ('conv_first', 'body', 'conv_after_body', 'conv_last'):
        for a, b in zip(
            getattr(source, part).parameters(), getattr(model.generator.backbone, part).parameters()
        ):
            assert torch.equal(a, b)


STOCK = 'mmagic::edsr/edsr_x{0}c64b16_1xb16-300k_div2k.py'


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_localize_a_stock_config_and_back(scale):
    cfg = localize(STOCK.format(scale), num_modules=4, auxiliary_lr_mult=2.0)
    assert cfg.model.generator.type == 'LocalBackbone'
    assert cfg.model.generator.backbone.upscale_factor == scale
    assert cfg.model.generator.auxiliary == dict(type='SLMReconstruction', head='own')
    assert cfg.optim_wrapper.type == 'LocalOptimWrapper'
    assert 'generator.auxiliary' in cfg.optim_wrapper.paramwise_cfg.custom_keys
    stock = stock_form(cfg)
    assert stock.model.generator.type == 'EDSRNet'
    assert stock.optim_wrapper.type == 'OptimWrapper'
    assert not any(hook['type'] == 'FBAHook' for hook in stock.custom_hooks)
    assert not stock.optim_wrapper.paramwise_cfg.custom_keys


@pytest.mark.parametrize('auxiliary, head', [('shared', 'shared'), ('light', 'own')])
def test_localize_by_word(auxiliary, head):
    cfg = localize(Config(dict(model=editor(None))), auxiliary=auxiliary)
    assert cfg.model.generator.auxiliary == dict(type='SLMReconstruction', head=head)


def test_preflight_accepts_it():
    cfg = localize(
        Config(
            dict(
                model=editor(None),
                train_dataloader=dict(),
                train_cfg=dict(max_epochs=1, by_epoch=True),
                optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-4)),
            )
        )
    )
    model = MODELS.build(copy.deepcopy(cfg.model))
    assert isinstance(check_training(cfg, model), LocalOptimWrapper)


# Faults


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(head='none'), "is 'own' or 'shared'"),
        (dict(residual='nearest'), "give 'bicubic', 'bilinear', 'network' or None"),
        (dict(head='shared', residual='bicubic'), 'leave residual out'),
        (dict(head='shared', skip=True), 'leave skip out'),
        (dict(head='shared', channels=8), 'leave channels out'),
        (dict(channels=0), 'give an integer from 1'),
        (dict(loss_weight=0), 'a module does not train'),
        (dict(type='SLM'), "take auxiliary=dict\\(type='SLMReconstruction'\\)"),
    ],
)
def test_faulty_options(options, message):
    with pytest.raises(LocalLearningError, match=message):
        build(editor(2, dict(dict(type='SLMReconstruction'), **options)))


def test_reconstruction_is_for_images():
    with pytest.raises(LocalLearningError, match="take auxiliary=dict\\(type='SLM'\\)"):
        build(retinanet(auxiliary=dict(type='SLMReconstruction')))


def test_other_faults():
    with pytest.raises(LocalLearningError, match="set scope='past'"):
        Trainer(build(editor(2)), scope='all')
    with pytest.raises(LocalLearningError, match='give 1 \\(back-propagation\\) to 6'):
        build(editor(7))
    model = build(editor(2)).train()
    with pytest.raises(LocalLearningError, match='does not train without FBAHook'):
        model(**model.data_preprocessor(patches(), True), mode='loss')
    cfg = Config(dict(model=editor(None)))
    cfg.optim_wrapper = dict(constructor='MultiOptimWrapperConstructor')
    with pytest.raises(LocalLearningError, match='as GANs do.*BaseEditModel'):
        localize(cfg)
    cfg.pop('optim_wrapper')
    with pytest.raises(LocalLearningError, match='model.generator is a LocalBackbone already'):
        localize(localize(cfg))
    cfg.model.pop('generator')
    with pytest.raises(LocalLearningError, match='no model.generator to cut'):
        localize(cfg)
    with mock.patch.object(
        type(model), 'train_step', lambda *args: None, create=True
    ), pytest.raises(LocalLearningError, match='BaseEditModel trains in steps of its own'):
        Trainer(model)
    with pytest.raises(LocalLearningError, match="mmagic's generator"):
        FBAHook().attach(build(editor(None)), None)
