"""What holds for every method: finite losses, isolation, checkpoints, copies, plain evaluation."""

import ast
import copy
import re
from unittest import mock

import pytest
import torch

from fba_mm import AmpLocalOptimWrapper, localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.preflight.building import build_model

from ...local_training import Trainer
from ...test_analysis.small_configs import classifier
from ...test_tools.in_process import ROOT

METHODS = {
    'Greedy': dict(type='Greedy'),
    'PredSim': dict(type='PredSim'),
    'DGL': dict(type='DGL'),
    'InfoPro': dict(type='InfoPro'),
    'InfoPro, contrastive': dict(type='InfoPro', contrastive=True),
    'AugLocal': dict(type='AugLocal', max_depth=3),
    'MAN': dict(type='MAN'),
    'MAN of InfoPro': dict(type='MAN', host=dict(type='InfoPro')),
    'MAN++': dict(type='MAN++'),
}
each_method = pytest.mark.parametrize('auxiliary', METHODS.values(), ids=METHODS)


def model_of(auxiliary, num_modules='blocks', **backbone):
    torch.manual_seed(0)
    model = build_model(
        localize(
            classifier('BN', **backbone), num_modules, auxiliary=dict(auxiliary, num_classes=5)
        )
    )
    model.init_weights()
    return model.train()


def trainer_of(model, **kwargs):
    return Trainer(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **kwargs)


def batch_for(model):
    return synthetic_batch(model, (4, 3, 64, 64))


@each_method
def test_a_module_trains_itself_and_its_auxiliary_network(auxiliary):
    model = model_of(auxiliary)
    trainer, wrapped = trainer_of(model), model.backbone
    trained = []

    def with_gradients():
        found = {name for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    def train(index, losses):
        loss, _ = model.parse_losses(losses)
        assert loss.isfinite() and loss > 0
        loss.backward()
        trained.append(with_gradients())

    names = {id(p): name for name, p in model.named_parameters()}
    with mock.patch.object(trainer.hook, 'train_module', train), mock.patch.object(
        type(trainer.optim_wrapper), 'step'
    ), mock.patch.object(type(trainer.optim_wrapper), 'zero_grad'):
        trainer.step(batch_for(model))
    assert len(trained) == 8
    for i, found in enumerate(trained):
        own = {names[id(p)] for p in wrapped.local_parameters(i) if p.requires_grad}
        assert found == own and any(name.startswith(f'backbone.auxiliary.{i}.') for name in found)
    assert {name.rsplit('.', 2)[0] for name in with_gradients()} == {
        'backbone.backbone.layer4.1',
        'head',
    }


@pytest.mark.slow
@each_method
def test_saved_loaded_and_copied_models_train_on_alike(auxiliary):
    model = model_of(auxiliary)
    data = batch_for(model)
    trainer = trainer_of(model)
    trainer.step(data)
    trainer.hook.after_train(trainer.runner)
    loaded = model_of(auxiliary)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), model.state_dict().values())
    )
    loaded.load_state_dict(model.state_dict(), strict=True)
    copied = copy.deepcopy(model)
    for aux in copied.backbone.auxiliary:
        assert aux.cut_point.copy_block.args[0] is copied.backbone.backbone
    results = []
    for each in (model, loaded, copied):
        trainer = trainer_of(each)
        log = [trainer.step(data) for _ in range(2)]
        results.append((log, trainer.log, each.state_dict()))
        trainer.hook.after_train(trainer.runner)
    (log, local, state), *others = results
    assert len(local) >= 8
    for other_log, other_local, other_state in others:
        assert other_log == log and other_local == local
        assert all(torch.equal(value, other_state[name]) for name, value in state.items())


@each_method
def test_evaluation_runs_no_auxiliary_network(auxiliary):
    model = model_of(auxiliary, 3)
    data = model.data_preprocessor(batch_for(model))

    def never(module, args):
        raise AssertionError(f'{type(module).__name__} ran')

    for module in model.backbone.auxiliary.modules():
        module.register_forward_pre_hook(never)
    before = {name: value.clone() for name, value in model.backbone.auxiliary.state_dict().items()}
    model.eval()
    with mock.patch.object(type(model.backbone.auxiliary[0]), 'loss', side_effect=AssertionError):
        predictions = model(**data, mode='predict')
    assert len(predictions) == 4
    after = model.backbone.auxiliary.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@each_method
def test_mixed_precision(auxiliary):
    model = model_of(auxiliary, 3)
    trainer = trainer_of(model, wrapper=AmpLocalOptimWrapper, dtype='bfloat16')
    logs = [trainer.step(batch_for(model)) for _ in range(2)]
    assert all(torch.isfinite(torch.tensor(list(log.values()))).all() for log in logs)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    'auxiliary',
    [METHODS['AugLocal'], METHODS['MAN'], METHODS['MAN++']],
    ids=['AugLocal', 'MAN', 'MAN++'],
)
def test_bottlenecks_checkpointed(auxiliary):
    """Blocks that are run again in the backward pass, behind every kind of cut."""
    losses = []
    for with_cp in (False, True):
        model = model_of(auxiliary, 5, depth=50, with_cp=with_cp)
        model.head.fc = torch.nn.Linear(256, 5)
        trainer = trainer_of(model)
        losses.append(
            [trainer.step(batch_for(model))['loss'] for _ in range(2)]
            + [float(value) for value in trainer.log.values()]
        )
    # Gradients of a map that is read twice are added up in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_methods_of_the_page():
    """Every config line of docs/methods.md builds and trains, the new method of its end too."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/methods.md').read_text(), re.S)
    exec(next(block for block in blocks if 'class TwoLayers' in block), {})
    kinds = [
        eval(compile(ast.Expression(line.value), 'docs', 'eval'))
        for block in blocks
        if block.startswith('auxiliary =')
        for line in ast.parse(block).body
    ] + [dict(type='TwoLayers', num_classes=10)]
    assert {kind['type'] for kind in kinds} == {kind['type'] for kind in METHODS.values()} | {
        'SLM',
        'StageTail',
        'TwoLayers',
    }
    for kind in kinds:
        cfg = localize(classifier('BN'), 3, auxiliary=kind)
        cfg.model.head.num_classes = 10
        model = build_model(cfg).train()
        trainer = trainer_of(model)
        trainer.step(batch_for(model))
        assert all(value.isfinite() for value in trainer.log.values()) and len(trainer.log) >= 2
