"""The gradients of a local step: K = 1 is the plain model, backward now is one backward later."""

from unittest import mock

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.utils import checkpoint

from fba_mm import LocalOptimWrapper

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer

# (stage, name) of what the modules of a ResNet-18 and a ResNet-50 are cut from; -1 is the stem.
BLOCKS = {
    depth: [(-1, 'stem')]
    + [
        (stage, f'layer{stage + 1}.{block}')
        for stage, count in enumerate(counts)
        for block in range(count)
    ]
    for depth, counts in ((18, (2, 2, 2, 2)), (50, (3, 4, 6, 3)))
}


def own_head_with_stage_channels() -> dict:
    """An own head on maps as wide as the backbone's, to which the bank can add deeper ones."""
    return dict(own_head(), channels=None)


AUXILIARIES = dict(shared=lambda: dict(type='SLM'), own=own_head_with_stage_channels)


def momentum_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize('depth', [18, 50])
def test_one_module_trains_exactly_as_the_unwrapped_model(depth):
    plain, wrapped = build(retinanet(depth, None)), build(retinanet(depth, 1))
    optim_wrapper = OptimWrapper(optimizer=momentum_sgd(plain.parameters()))
    trainer = Trainer(wrapped, LocalOptimWrapper, momentum_sgd)

    def same(a, b):
        assert len(a) == len(b) > 0
        for x, y in zip(a, b):
            assert (x is None and y is None) or torch.equal(x, y)

    gradients = {}
    for name, wrapper in (('plain', optim_wrapper), ('wrapped', trainer.optim_wrapper)):
        # What the optimizer is about to apply.
        wrapper.optimizer.register_step_pre_hook(
            lambda optimizer, *_, name=name: gradients.__setitem__(
                name,
                [
                    p.grad.clone() if p.grad is not None else None
                    for p in optimizer.param_groups[0]['params']
                ],
            )
        )
    same(list(plain.parameters()), list(wrapped.parameters()))
    for i in range(4):
        losses = {
            k: float(v.detach()) for k, v in plain.train_step(batch(seed=i), optim_wrapper).items()
        }
        assert trainer.step(batch(seed=i)) == losses
        same(gradients['plain'], gradients['wrapped'])
    same(list(plain.parameters()), list(wrapped.parameters()))
    same(list(plain.buffers()), list(wrapped.buffers()))


def deferred_gradients(model, data, depth, scope, deeper_maps=False):
    """The local step in its plain form: detached modules, all losses summed, one backward.

    With ``deeper_maps``, the maps of a forward pass without gradients are added to the SLM's.
    """
    data = model.data_preprocessor(data, training=True)
    images, samples = data['inputs'], data['data_samples']
    wrapped = model.backbone
    resnet = wrapped.backbone
    with torch.no_grad():
        everything = resnet(images)
    stages = [stage for stage, _ in BLOCKS[depth]] + [4]
    run = [lambda x: resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))]
    run += [resnet.get_submodule(name) for _, name in BLOCKS[depth][1:]]

    def loss_of(network, maps):
        losses = network.bbox_head.loss(network.neck(tuple(maps)), samples)
        return sum(sum(v) for name, v in losses.items() if 'loss' in name)

    total, x, finished = 0.0, images, {}
    for k, module in enumerate(wrapped.module_segments):
        x, own = x.detach(), {}
        for i in module:
            x = run[i](x)
            if stages[i + 1] > stages[i] >= 0:
                own[stages[i]] = x
        finished.update(own)
        if k == len(wrapped.auxiliary):
            total = total + loss_of(model, [finished[stage] for stage in range(4)])
            break
        auxiliary = wrapped.auxiliary[k]
        blocks, deeper, maps = iter(auxiliary.blocks), x, []
        for stage in range(4):
            if stage > stages[module[-1]]:
                deeper = next(blocks)(deeper)
                maps.append(deeper + everything[stage] if deeper_maps else deeper)
            elif stage in own:
                maps.append(own[stage])
            elif stage == stages[module[-1]]:
                maps.append(x)
            else:
                shallow = finished[stage]
                maps.append(torch.zeros_like(shallow) if scope == 'off' else shallow)
        total = total + loss_of(auxiliary.head or model, maps)
        finished = {stage: feature.detach() for stage, feature in finished.items()}
    total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


SCOPES = [('past', None), ('off', None), ('all', 1.0), ('all', 0.0)]


@pytest.mark.parametrize(
    'depth, num_modules, scope, bank_dropout',
    [
        *((18, num_modules, *scope) for num_modules in (4, 'blocks') for scope in SCOPES),
        (18, 2, 'all', 0.0),
        (18, 'stages', 'all', 1.0),
        (50, 4, 'past', None),
    ],
)
@pytest.mark.parametrize('head', sorted(AUXILIARIES))
def test_backward_now_gives_the_gradients_of_one_backward_later(
    depth, num_modules, head, scope, bank_dropout
):
    auxiliary = AUXILIARIES[head]()
    if bank_dropout is not None:
        auxiliary['bank_dropout'] = bank_dropout
    model = build(retinanet(depth, num_modules, auxiliary=auxiliary))
    trainer = Trainer(model, scope=scope)
    # The order in which a shared head's gradients are summed makes no difference then.
    model.double()
    expected = deferred_gradients(model, batch(), depth, scope, deeper_maps=bank_dropout == 0)
    actual = trainer.gradients(batch())
    assert actual.keys() == expected.keys()
    assert len(actual) == len(list(model.parameters()))
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12, msg=name)


def reached_parameters(model, trainer, data):
    """Names of the parameters that each loss sends a gradient to; the last is the model's own."""
    wrapper, reached = trainer.optim_wrapper, []

    def collect():
        reached.append({n for n, p in model.named_parameters() if p.grad is not None})
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)
        model.zero_grad()

    update_local, step = wrapper.update_local, wrapper.step
    wrapper.update_local = lambda *args: (update_local(*args), collect())
    wrapper.step = lambda: (collect(), step())
    trainer.step(data)
    return reached


@pytest.mark.parametrize('scope', ['past', 'all'])
@pytest.mark.parametrize('head', sorted(AUXILIARIES))
@pytest.mark.parametrize('num_modules', [4, 'blocks'])
def test_a_loss_reaches_its_own_module_alone(num_modules, head, scope):
    model = build(retinanet(18, num_modules, auxiliary=AUXILIARIES[head]()))
    reached = reached_parameters(model, Trainer(model, scope=scope), batch(seed=1))
    wrapped = model.backbone
    last = len(wrapped.module_segments) - 1
    assert len(reached) == last + 1

    names = [n for n, _ in model.named_parameters()]
    shared = [n for n in names if n.startswith(('neck.', 'bbox_head.'))]
    for k, module in enumerate(wrapped.module_segments):
        prefixes = [f'backbone.backbone.{BLOCKS[18][i][1]}.' for i in module]
        prefixes = [p.replace('.stem.', part) for p in prefixes for part in ('.conv1.', '.bn1.')]
        expected = {n for n in names if n.startswith(tuple(prefixes))}
        if k < last:
            expected |= {n for n in names if n.startswith(f'backbone.auxiliary.{k}.')}
            own = {
                n
                for n, p in model.named_parameters()
                if any(p is q for q in wrapped.local_parameters(k))
            }
            assert own == expected
        if k == last or head == 'shared':
            expected.update(shared)
        assert reached[k] == expected, f'module {k + 1}'


@pytest.mark.parametrize('auxiliary', sorted(AUXILIARIES))
def test_activation_checkpointing_leaves_the_gradients_as_they_are(auxiliary):
    gradients, calls = [], []
    for with_cp in (False, True):
        cfg = retinanet(18, 'stages', auxiliary=AUXILIARIES[auxiliary](), with_cp=with_cp)
        trainer = Trainer(build(cfg))
        with mock.patch(
            'mmdet.models.backbones.resnet.cp.checkpoint', wraps=checkpoint.checkpoint
        ) as checkpointed:
            gradients.append(trainer.gradients(batch()))
        calls.append(checkpointed.call_count)
    # Stock blocks are checkpointed if their input needs a gradient, which a detached one doesn't:
    # both of layer1, behind the stem, and the second of each other layer.
    assert calls == [0, 5]
    kept, recomputed = gradients
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


@pytest.mark.parametrize('loss_weight', [0.25, 3.0])
def test_loss_weight_scales_what_a_module_learns(loss_weight):
    one, weighted = (
        Trainer(build(retinanet(18, 2, auxiliary=dict(own_head(), loss_weight=weight))))
        for weight in (1.0, loss_weight)
    )
    plain, scaled = one.gradients(batch()), weighted.gradients(batch())
    assert weighted.log['local_1.loss'] == pytest.approx(loss_weight * one.log['local_1.loss'])
    for parameter_of, factor in (('backbone.backbone.conv1.', loss_weight), ('bbox_head.', 1.0)):
        names = [n for n in plain if n.startswith(parameter_of)]
        assert names
        for name in names:
            torch.testing.assert_close(scaled[name], plain[name] * factor)


def gradient_norms(model, scope, batches):
    """Per module but the last, the norm of the gradient that its own layers get."""
    wrapped = model.backbone
    trainer = Trainer(model, scope=scope)
    squares = torch.zeros(len(wrapped.auxiliary))
    for data in batches:
        gradients = trainer.gradients(data)
        for k in range(len(squares)):
            own = {id(p) for p in wrapped.local_parameters(k)}
            names = [n for n, p in wrapped.backbone.named_parameters() if id(p) in own]
            squares[k] += sum(gradients[f'backbone.backbone.{n}'].square().sum() for n in names)
    trainer.hook.after_train(trainer.runner)
    return (squares / len(batches)).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize('head, scope', [('shared', 'past'), ('own', 'all')])
def test_the_bank_does_not_starve_a_module(head, scope):
    # The neck reads all four levels, so that the bank has a word in each module's loss.
    def on_all_levels(cfg):
        cfg['neck']['start_level'] = 0
        cfg['bbox_head']['anchor_generator']['strides'] = [4, 8, 16, 32, 64]

    auxiliary = AUXILIARIES[head]()
    cfg = retinanet(18, 'stages', auxiliary=auxiliary)
    on_all_levels(cfg)
    if head == 'own':
        on_all_levels(auxiliary['head'])
    model = build(cfg)
    batches = [batch(seed=seed) for seed in range(4)]
    for steps in (0, 48):
        trainer = Trainer(model, scope=scope, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
        for i in range(steps):
            trainer.step(batches[i % 4])
        trainer.hook.after_train(trainer.runner)
        ratios = gradient_norms(model, scope, batches[:2]) / gradient_norms(
            model, 'off', batches[:2]
        )
        # Measured: 0.90 to 1.20 at first, 0.47 to 1.83 after the steps.
        assert ratios.min() > 0.3, ratios
