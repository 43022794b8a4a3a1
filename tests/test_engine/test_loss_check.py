"""Losses that are NaN or infinite: named, and no weight lost to them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.engine.hooks import CheckInvalidLossHook

from fba_mm import AmpLocalOptimWrapper, FBAHook, LocalLearningError, LocalOptimWrapper
from fba_mm.engine.loss_check import LossCheck

from ..conftest import batch, build, needs_float16, own_head, retinanet
from ..local_training import Trainer


def spoiled(auxiliary, module, value=float('nan'), **kwargs):
    """A trainer, and a switch that spoils a module's loss (the last is the model's own)."""
    model = build(retinanet(num_modules=3, auxiliary=auxiliary))
    trainer = Trainer(model, **kwargs)
    parse, calls = model.parse_losses, []
    switch = SimpleNamespace(on=False)

    def parse_losses(losses):
        calls.append(1)
        if switch.on and (len(calls) - 1) % 3 == module:
            losses = dict(losses, loss_bbox=[loss + value for loss in losses['loss_bbox']])
        return parse(losses)

    model.parse_losses = parse_losses
    return trainer, switch


@pytest.mark.parametrize(
    'module, settings',
    [
        (0, dict(apply='end')),
        (1, dict(apply='end', clip_grad=dict(max_norm=1.0))),
        (1, dict(apply='eager')),
        pytest.param(
            2,
            dict(wrapper=AmpLocalOptimWrapper, dtype='float16', apply='end'),
            marks=needs_float16,
        ),
    ],
    ids=['end', 'one norm', 'eager', 'fp16'],
)
def test_training_stops_before_the_module_is_spoiled(module, settings):
    trainer, switch = spoiled(own_head(), module, **settings)
    trainer.step(batch())
    switch.on = True
    before = copy.deepcopy(trainer.model.state_dict())
    place = f'module {module + 1} of 3'
    with pytest.raises(LocalLearningError, match=f'^iteration 2: the loss of {place} is nan'):
        trainer.step(batch())
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    parts = trainer.hook._parameters
    eager = settings['apply'] == 'eager'
    earlier = {id(p) for part in parts[:module] for p in part} if eager else ()
    for name, parameter in trainer.model.named_parameters():
        if id(parameter) not in earlier:
            assert torch.equal(before[name], parameter), name


def test_the_term_and_infinity_are_named():
    trainer, switch = spoiled(own_head(), 0, float('inf'))
    switch.on = True
    with pytest.raises(LocalLearningError, match=r'1 of 3 is inf \(loss_bbox inf\): look at'):
        trainer.step(batch())


@pytest.mark.parametrize(
    'module, auxiliary, apply',
    [(0, 'shared', 'end'), (1, 'own', 'eager'), (2, 'own', 'end'), (2, 'shared', 'eager')],
)
def test_a_module_is_skipped(module, auxiliary, apply):
    """What that loss alone trains stays; everything else is trained as without it."""
    auxiliary = own_head() if auxiliary == 'own' else dict(type='SLM')
    trainer, switch = spoiled(
        auxiliary,
        module,
        apply=apply,
        hook=dict(invalid_loss='skip'),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    before = copy.deepcopy(trainer.model.state_dict())
    switch.on = True
    trainer.step(batch())
    switch.on = False
    model = trainer.model
    assert all(value.isfinite().all() for value in model.state_dict().values())
    parts = trainer.hook._parameters
    last = [
        p
        for i in model.backbone.module_segments[2]
        for p in model.backbone.segments[i].parameters(model.backbone.backbone)
    ]
    moved = {id(p) for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    for index, part in enumerate([*parts, last]):
        assert any(id(p) in moved for p in part) is (index != module)
    trained = id(model.bbox_head.retina_cls.weight) in moved
    assert trained is (auxiliary['type'] == 'SLM' and 'head' not in auxiliary or module != 2)
    trainer.step(batch())  # And goes on.


@pytest.mark.parametrize('module', [0, 1, 2])
@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_the_others_learn_as_without_the_fault(module, apply):
    """Bit for bit, running statistics included."""
    trained = []
    for faulty in (False, True):
        torch.manual_seed(0)
        trainer, switch = spoiled(own_head(), module, hook=dict(invalid_loss='skip'), apply=apply)
        switch.on = faulty
        trainer.step(batch())
        trained.append(trainer.model)
    plain, other = trained
    backbone = plain.backbone
    layers = {
        id(p)
        for i in backbone.module_segments[module]
        for p in backbone.segments[i].parameters(backbone.backbone)
    }
    if module < 2:
        own = layers | {id(p) for p in backbone.auxiliary[module].parameters()}
    else:
        parts = plain.neck, plain.bbox_head
        own = layers | {id(p) for part in parts for p in part.parameters()}
    parameters, buffers = dict(other.named_parameters()), dict(other.named_buffers())
    differ = {id(p) for name, p in plain.named_parameters() if not torch.equal(p, parameters[name])}
    assert differ and differ <= own
    assert all(torch.equal(value, buffers[name]) for name, value in plain.named_buffers())


def test_all_are_looked_at_once_where_looking_means_waiting(monkeypatch):
    """As on a GPU, which the check takes the losses to be on here."""
    looks = []
    is_number = LossCheck._is_number
    monkeypatch.setattr(
        LossCheck,
        '_is_number',
        staticmethod(lambda losses: looks.append(losses.shape) or is_number(losses)),
    )

    class Elsewhere(LossCheck):
        def trains(self, index, loss, terms):
            return super().trains(
                index, SimpleNamespace(device=torch.device('cuda'), detach=loss.detach), terms
            )

    for settings in (dict(apply='end', clip_grad=dict(max_norm=1.0)), dict(apply='eager')):
        trainer, switch = spoiled(own_head(), 0, **settings)
        check = trainer.hook._check = Elsewhere('stop', 3)
        trainer.optim_wrapper.check_with(check)
        check.begin(0)
        looks.clear()
        trainer.step(batch())
        assert looks == [(3,)]
        before = copy.deepcopy(dict(trainer.model.named_parameters()))
        switch.on = True
        with pytest.raises(LocalLearningError, match='iteration 2: .* of module 1 of 3 is nan'):
            trainer.step(batch())
        unchanged = {
            name for name, p in trainer.model.named_parameters() if torch.equal(before[name], p)
        }
        assert (
            unchanged == set(before)
            if settings['apply'] == 'end'
            else unchanged
            >= {'bbox_head.retina_cls.weight', 'backbone.backbone.layer4.0.conv1.weight'}
        )


def test_back_propagation_and_processes_without_the_last_loss():
    check = LossCheck('stop', 1)
    check.begin(4)
    with pytest.raises(LocalLearningError, match='iteration 5: .* of the model itself is nan'):
        check.finishes(torch.tensor(float('nan')))
    assert LossCheck('stop', 3).finishes()


@needs_float16
def test_a_scaler_without_any_loss():
    trainer = Trainer(
        build(retinanet(num_modules=1)),
        AmpLocalOptimWrapper,
        dtype='float16',
        hook=dict(invalid_loss='skip'),
    )
    parse = trainer.model.parse_losses
    trainer.model.parse_losses = lambda losses: (parse(losses)[0] * float('nan'), {})
    before = copy.deepcopy(dict(trainer.model.named_parameters()))
    trainer.step(batch())
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    trainer.model.parse_losses = parse
    trainer.step(batch())


def test_settings():
    with pytest.raises(LocalLearningError, match="invalid_loss='go on': give 'stop' or 'skip'"):
        FBAHook(invalid_loss='go on')
    trainer, _ = spoiled(own_head(), 0, hook=dict(invalid_loss='skip'))
    assert trainer.hook._check.mode == 'skip'
    trainer.runner.hooks = [CheckInvalidLossHook()]
    trainer.hook.before_run(trainer.runner)
    assert trainer.hook._check.mode == 'stop'
    trainer.model.backbone.head_batch_size = 1
    with pytest.raises(LocalLearningError, match='does not go with head_batch_size'):
        trainer.hook.before_run(trainer.runner)
    wrapper = LocalOptimWrapper(torch.optim.SGD(trainer.model.parameters(), lr=0.1))
    assert wrapper._loss_check is None
