"""What a classifier's modules make of the bank, and configs from before these were a project."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint, save_checkpoint

from fba_mm import LocalLearningError, localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.engine import LocalOptimWrapper
from fba_mm.engine.fba_hook import check_local_training
from fba_mm.local import FeatureBank, bank_use

from ..conftest import build, retinanet
from ..local_training import Trainer
from ..test_analysis.small_configs import classifier

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:bank_use of type')]
CLASSES = 5
USES = {
    'GatedContext': dict(type='GatedContext', dropout=0.0),
    'FeatureTarget': dict(type='FeatureTarget'),
    'LogitTarget': dict(type='LogitTarget', temperature=2.0),
    'ClassMemory': dict(type='ClassMemory', num_classes=CLASSES, momentum=0.8),
    'SampleMemory': dict(type='SampleMemory', num_classes=CLASSES, num_samples=8),
}
SCOPES = dict(FeatureTarget='all', LogitTarget='all')


@pytest.fixture(autouse=True)
def _in_mmpretrain():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def ahead(monkeypatch):
    """The maps that the pass ahead banks."""
    maps = []
    put = FeatureBank.put

    def noting(self, level, feature, ahead=False):
        if ahead:
            maps.append(feature.clone())
        put(self, level, feature, ahead)

    monkeypatch.setattr(FeatureBank, 'put', noting)
    return maps


def model_with(use=None, num_modules=3, **backbone):
    auxiliary = dict(type='SLM', **({} if use is None else dict(bank_use=use)))
    cfg = localize(classifier('BN', **backbone), num_modules, auxiliary=auxiliary)
    model = build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    return model.train()


def batch_for(model, images=4, labels=None, first=0):
    data = synthetic_batch(model, (images, 3, 64, 64))
    for i, sample in enumerate(data['data_samples']):
        sample.set_metainfo(dict(sample_idx=first + i))
        if labels is not None:
            sample.set_gt_label(labels[i])
    return data


class Spy:
    """Notes what a module's use of the bank is told and answers."""

    def __init__(self, use):
        self.told, self.losses, self.enriched = [], [], []
        loss, enrich = use.loss, use.enrich

        def spying_loss(features, head, source, step):
            self.told.append((features, step))
            self.losses.append(loss(features, head, source, step))
            return self.losses[-1]

        def spying_enrich(features, step):
            self.enriched.append((features, enrich(features, step)))
            return self.enriched[-1][1]

        use.loss, use.enrich = spying_loss, spying_enrich


def pooled(features):
    return features[-1].detach().mean((2, 3))


@pytest.mark.parametrize('name', USES)
def test_trains_in_isolation(name):
    """Whatever the bank gives, a module's loss reaches its own parameters alone."""
    model = model_with(USES[name])
    trainer = Trainer(model, scope=SCOPES.get(name, 'past'))
    data = batch_for(model)
    trainer.step(data)  # what is remembered comes from an iteration before
    backbone = model.backbone
    own = [set(backbone.local_parameters(i)) for i in range(2)]
    head = set(model.head.parameters())
    reached = {}

    def find_reached(i, losses):
        loss, _ = model.parse_losses(losses)
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        reached[i] = {p for p, grad in zip(parameters, grads) if grad is not None and grad.any()}

    trainer.hook.train_module = find_reached
    model(**model.data_preprocessor(data, True), mode='loss')
    for index in range(2):
        assert reached[index] <= own[index] | head
        assert reached[index] & own[index]


@pytest.mark.parametrize('name', USES)
def test_evaluation_and_copies(name, tmp_path):
    model = model_with(USES[name])
    trainer = Trainer(model, scope=SCOPES.get(name, 'past'))
    trainer.step(batch_for(model))
    save_checkpoint(dict(state_dict=model.state_dict()), str(tmp_path / 'model.pth'))
    other = model_with(USES[name])
    load_checkpoint(other, str(tmp_path / 'model.pth'), strict=True)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    twin = copy.deepcopy(model).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(twin.backbone(image)[0], model.eval().backbone.backbone(image)[0])


def test_a_closed_gate_changes_nothing():
    model = model_with(dict(type='GatedContext', dropout=1.0))
    spy = Spy(model.backbone.auxiliary[1].bank_use)
    Trainer(model).step(batch_for(model))
    ((own, enriched),) = spy.enriched
    assert torch.equal(own[-1], enriched[-1])


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_gated_context(scope, ahead, monkeypatch):
    model = model_with(dict(type='GatedContext', dropout=0.0, opening=0.25))
    use = model.backbone.auxiliary[1].bank_use
    spy = Spy(use)
    banked = []
    put = FeatureBank.put_pooled
    monkeypatch.setattr(
        FeatureBank,
        'put_pooled',
        lambda self, x: (put(self, x), banked.append((x, self.pooled()[-1]))),
    )
    Trainer(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), scope=scope).step(
        batch_for(model)
    )
    ((own, enriched),) = spy.enriched
    sources = [use.projections[0](banked[0][1])]
    if scope == 'all':
        sources.append(use.deep_projection(pooled(ahead)))
    context = 0.25 * sum(sources) / len(sources)
    torch.testing.assert_close(enriched[-1] - own[-1], context[..., None, None].expand_as(own[-1]))
    for feature, average in banked:
        torch.testing.assert_close(average, feature.mean((2, 3)))
        assert not average.requires_grad


def test_context_is_withheld_from_a_share():
    model = model_with(dict(type='GatedContext', dropout=0.5))
    spy = Spy(model.backbone.auxiliary[1].bank_use)
    Trainer(model).step(batch_for(model, images=32))
    ((own, enriched),) = spy.enriched
    given = (own[-1] != enriched[-1]).flatten(1).any(1)
    assert 6 < given.sum() < 26


@pytest.mark.parametrize('scope', ['past', 'all'])
def test_context_does_not_answer_for_a_module(scope):
    """The gradient that reaches a module isn't a small fraction of that without a bank."""

    def gradient(use, scope):
        model = model_with(use)
        trainer = Trainer(model, scope=scope)
        for _ in range(5):
            trainer.step(batch_for(model, labels=[0, 1, 2, 3]))
        return sum(
            grad.square().sum()
            for name, grad in trainer.gradients(batch_for(model, labels=[0, 1, 2, 3])).items()
            if name.startswith('backbone.backbone.layer1')
        ).sqrt()

    assert gradient(dict(type='GatedContext'), scope) > 0.5 * gradient(None, 'off')


def test_deep_features_are_no_evidence():
    """Where the bank is a target, the module's own answer doesn't contain it."""
    model = model_with(USES['FeatureTarget'], num_modules=2)
    spy = Spy(model.backbone.auxiliary[0].bank_use)
    auxiliary = model.backbone.auxiliary[0]
    inputs = []
    loss = auxiliary.loss
    auxiliary.loss = lambda x, levels, step: (inputs.append(x.detach()), loss(x, levels, step))[1]
    twin = copy.deepcopy(auxiliary.blocks)
    Trainer(model, scope='all').step(batch_for(model))
    deeper = inputs[0]
    for block in twin:
        deeper = block(deeper)
    torch.testing.assert_close(spy.told[0][0][-1], deeper)


def test_feature_target(ahead):
    model = model_with(USES['FeatureTarget'], num_modules=2)
    spy = Spy(model.backbone.auxiliary[0].bank_use)
    Trainer(model, scope='all').step(batch_for(model))
    a, b = pooled(spy.told[0][0]), pooled(ahead)
    expected = 0.5 * (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    torch.testing.assert_close(spy.losses[0].detach(), expected)


def test_logit_target(ahead):
    model = model_with(USES['LogitTarget'], num_modules=2)
    spy = Spy(model.backbone.auxiliary[0].bank_use)
    head = copy.deepcopy(model.head.fc)
    Trainer(model, scope='all').step(batch_for(model))
    own, target = (F.softmax(head(f) / 2, dim=1) for f in (pooled(spy.told[0][0]), pooled(ahead)))
    expected = 0.5 * 4 * (target * (target.log() - own.log())).sum(1).mean()
    torch.testing.assert_close(spy.losses[0].detach(), expected.detach())


def test_class_memory():
    model = model_with(USES['ClassMemory'], num_modules=2)
    use = model.backbone.auxiliary[0].bank_use
    spy = Spy(use)
    deep = []
    observe = use.observe
    use.observe = lambda features, step: (deep.append(pooled(features)), observe(features, step))
    trainer = Trainer(model)

    trainer.step(batch_for(model, labels=[1, 1, 3, 3]))
    assert [loss.item() for loss in spy.losses] == [0]  # nothing is known yet
    first = torch.stack([deep[0][:2].mean(0), deep[0][2:].mean(0)])
    torch.testing.assert_close(use.means[[1, 3]], first)
    assert use.known.tolist() == [False, True, False, True, False]

    trainer.step(batch_for(model, labels=[1, 3, 3, 0]))
    own = F.normalize(pooled(spy.told[1][0])[:3], dim=1)
    cosines = own @ F.normalize(first, dim=1).t() / 0.1
    # The class that is unknown has no loss and is nobody's rival.
    expected = 0.5 * F.cross_entropy(cosines, torch.tensor([0, 1, 1])) * 3 / 4
    torch.testing.assert_close(spy.losses[1].detach(), expected)
    torch.testing.assert_close(use.means[1], 0.8 * first[0] + 0.2 * deep[1][0])
    torch.testing.assert_close(use.means[3], 0.8 * first[1] + 0.2 * deep[1][1:3].mean(0))
    torch.testing.assert_close(use.means[0], deep[1][3])
    assert use.means[2].eq(0).all()


def test_sample_memory():
    model = model_with(USES['SampleMemory'], num_modules=2)
    use = model.backbone.auxiliary[0].bank_use
    spy = Spy(use)
    trainer = Trainer(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    deep = []
    observe = use.observe
    use.observe = lambda features, step: (deep.append(pooled(features)), observe(features, step))
    trainer.step(batch_for(model))
    logits = model.head.fc(deep[0]).detach()
    torch.testing.assert_close(use.logits[:4].float(), logits, rtol=1e-2, atol=1e-3)
    trainer.step(batch_for(model, first=2))  # two that are known, two that aren't
    own = F.softmax(model.head.fc(pooled(spy.told[1][0])), 1)[:2].detach()
    target = F.softmax(logits[2:], 1)
    expected = 0.5 * (target * (target.log() - own.log())).sum(1).mean() / 2
    assert spy.losses[0] == 0
    torch.testing.assert_close(spy.losses[1].detach(), expected, rtol=2e-2, atol=1e-4)
    assert use.known.tolist() == [True] * 6 + [False] * 2
    with pytest.raises(LocalLearningError, match='batch has those numbered 6 to 9.*num_samples'):
        trainer.step(batch_for(model, first=6))


@pytest.mark.parametrize(
    'use, scope, words',
    [
        (dict(type='FeatureTarget'), 'past', "FeatureTarget' finds nothing.*scope='all'"),
        (dict(type='LogitTarget'), 'off', "LogitTarget' finds nothing.*scope='all'"),
        (dict(type='GatedContext'), 'off', "GatedContext' finds nothing"),
        (dict(type='ClassMemory', num_classes=7), 'past', 'bank_use knows 7 classes, the model 5'),
        (dict(type='SampleMemory', num_classes=7, num_samples=4), 'past', 'knows 7 classes'),
    ],
)
def test_what_does_not_fit_the_model(use, scope, words):
    model = model_with(use)
    with pytest.raises(LocalLearningError, match=words):
        check_local_training(model, LocalOptimWrapper, scope)


def test_a_detector():
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(retinanet(auxiliary=dict(type='SLM', bank_use=dict(type='GatedContext'))))
    with pytest.raises(LocalLearningError, match='RetinaNet is none: leave bank_use out'):
        check_local_training(model, LocalOptimWrapper)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(type='ClassMemory'), 'num_classes=None: give an integer'),
        (dict(type='ClassMemory', num_classes=5, momentum=1.0), 'momentum=1.0'),
        (dict(type='ClassMemory', num_classes=5, temperature=0.0), 'temperature=0.0'),
        (dict(type='SampleMemory', num_classes=5), 'num_samples=None'),
        (dict(type='GatedContext', dropout=2.0), 'dropout=2.0'),
        (dict(type='GatedContext', opening=1.0), 'opening=1.0'),
        (dict(type='FeatureTarget', weight=0.0), 'weight=0.0'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(LocalLearningError, match=words):
        model_with(settings)


@pytest.mark.parametrize('use', [None, USES['LogitTarget'], USES['ClassMemory']])
def test_a_head_of_its_own(use):
    head = dict(
        type='ImageClassifier',
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=CLASSES,
            in_channels=64,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )
    auxiliary = dict(type='SLM', head=head, **({} if use is None else dict(bank_use=use)))
    cfg = localize(classifier('BN'), 3, auxiliary=auxiliary)
    model = build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    own = model.backbone.auxiliary[0].head.head.fc.weight
    before, main = own.clone(), model.head.fc.weight.clone()
    trainer = Trainer(model, scope='all')
    gradients = trainer.gradients(batch_for(model))
    assert gradients['backbone.auxiliary.0.head.head.fc.weight'].abs().sum() > 0
    trainer.step(batch_for(model))
    assert not torch.equal(own, before) and not torch.equal(model.head.fc.weight, main)


@pytest.mark.parametrize(
    'scope, frozen',
    [('past', {'0.gate', '0.deep_projection', '1.deep_projection'}), ('all', set())],
)
def test_what_a_scope_has_no_source_for_is_not_trained(scope, frozen):
    """Processes would wait for its gradients."""
    model = model_with(USES['GatedContext'])
    trainer = Trainer(model, scope=scope)
    gradients = trainer.gradients(batch_for(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(gradients)
    parts = {
        name.replace('.bank_use.', '.').split('auxiliary.')[1].rpartition('.')[0]
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert parts == frozen


@pytest.mark.parametrize('name', ['FeatureTarget', 'LogitTarget', 'GatedContext'])
def test_a_bank_in_fewer_bits(name):
    model = model_with(USES[name])
    trainer = Trainer(model, scope='all')
    trainer.hook.bank.dtype = torch.bfloat16
    assert all(torch.isfinite(torch.tensor(v)) for v in trainer.step(batch_for(model)).values())


def test_memories_of_mixed_images_are_refused():
    model = model_with(USES['SampleMemory'])
    model.data_preprocessor.batch_augments = object()
    with pytest.raises(LocalLearningError, match='batch_augments mixes them: leave'):
        check_local_training(model, LocalOptimWrapper)


@pytest.mark.parametrize('name', ['ClassMemory', 'SampleMemory', 'GatedContext'])
def test_the_bank_behind_another_methods_block(name):
    """MAN's host sees what it would see alone."""
    host = dict(type='SLM', bank_use=USES[name])
    cfg = localize(classifier('BN'), 3, auxiliary=dict(type='MAN', host=host))
    model = build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    trainer = Trainer(model)
    data = batch_for(model, labels=[0, 1, 2, 3])
    spies = [Spy(auxiliary.host.bank_use) for auxiliary in model.backbone.auxiliary]
    for _ in range(2):
        trainer.step(data)
    if name == 'GatedContext':
        assert any(not torch.equal(before[-1], after[-1]) for before, after in spies[1].enriched)
    else:
        assert all(spy.losses[0] == 0 and spy.losses[1] > 0 for spy in spies)


def test_a_bank_that_has_nothing_for_the_host():
    cfg = localize(
        classifier('BN'),
        3,
        auxiliary=dict(type='MAN', host=dict(type='SLM', bank_use=USES['FeatureTarget'])),
    )
    model = build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    with pytest.raises(LocalLearningError, match="'FeatureTarget' finds nothing"):
        check_local_training(model, LocalOptimWrapper, 'past')


def test_configs_from_before_the_move(monkeypatch):
    """They build what they built, with a warning; without the repository, they say what to do."""
    known = {name: MODELS.module_dict.pop(name, None) for name in USES}
    for name in ('projects.bank_uses', 'projects.bank_uses.bank_uses'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        use = USES['ClassMemory']
        with pytest.warns(UserWarning, match="custom_imports=.*'projects.bank_uses'"):
            model = model_with(use)
        names = set(model.state_dict())
        assert {f'backbone.auxiliary.{i}.bank_use.means' for i in (0, 1)} <= names
        assert set(model_with(dict(use, type='fba_mm.ClassMemory')).state_dict()) == names
        assert bank_use.ClassMemory is type(model.backbone.auxiliary[0].bank_use)
        for name in USES:
            MODELS.module_dict.pop(name)
        monkeypatch.setattr(bank_use, '__file__', '/site-packages/fba_mm/local/bank_use.py')
        with pytest.raises(LocalLearningError, match='of its repository: set custom_imports='):
            model_with(use)
    finally:
        MODELS.module_dict.update({name: kind for name, kind in known.items() if kind})
