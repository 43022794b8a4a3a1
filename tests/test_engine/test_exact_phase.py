"""Local learning that ends in back-propagation: ``FBAHook(exact_from=…)``."""

import copy

import pytest
import torch

from fba_mm import (
    FBAHook,
    LocalDataParallel,
    LocalLearningError,
    LocalModuleParallel,
    localize,
)
from fba_mm.analysis import TrainingStep
from fba_mm.analysis.synthetic_batch import synthetic_batch

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer
from ..several_processes import run_in_processes

ITERATIONS = 4


def trainer_of(model, exact_from=0.5, **kwargs):
    """A training of four iterations."""
    trainer = Trainer(model, hook=dict(exact_from=exact_from), **kwargs)
    trainer.runner.max_iters = ITERATIONS
    return trainer


def detector(num_modules=3):
    return build(retinanet(num_modules=num_modules, norm='GN', auxiliary=own_head())).double()


def as_stock(model):
    """The gradients of back-propagation, by a copy of the model with one module."""
    stock = build(retinanet(num_modules=1, norm='GN')).double()
    weights = {k: v for k, v in model.state_dict().items() if 'auxiliary' not in k}
    stock.load_state_dict(weights)
    return Trainer(stock)


def test_after_its_share_the_gradients_are_those_of_back_propagation():
    model, data = detector(), batch()
    trainer = trainer_of(model)
    for _ in range(2):
        assert 'backbone.auxiliary.0.head.bbox_head.retina_cls.weight' in trainer.gradients(data)
    assert model.backbone.num_modules == 3
    found = trainer.gradients(data)
    assert model.backbone.num_modules == 1 and len(model.backbone.spans[0]) == 3
    expected = as_stock(model).gradients(data)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_weights_move_as_by_back_propagation_and_auxiliary_networks_stay(apply):
    model, data = detector(), batch()
    trainer = trainer_of(model, apply=apply)
    for _ in range(2):
        trainer.step(data)
    before = copy.deepcopy(model.state_dict())
    assert trainer.log
    trainer.step(data)
    assert not trainer.log  # No module has a loss of its own.
    for name, value in model.state_dict().items():
        is_auxiliary = 'auxiliary' in name
        moved = not torch.equal(value, before[name])
        assert moved != is_auxiliary or not value.is_floating_point(), name


def test_a_resumed_training_goes_on_in_its_phase():
    trainer = trainer_of(detector())
    trainer.runner.iter = 3
    trainer.step(batch())
    assert trainer.model.backbone.num_modules == 1


def test_a_loss_that_is_no_number_is_the_models_own():
    model = detector()
    trainer = trainer_of(model)
    trainer.runner.iter = 2
    with torch.no_grad():
        model.bbox_head.retina_cls.bias.fill_(float('nan'))
    with pytest.raises(LocalLearningError, match='iteration 3: the loss of the model itself is'):
        trainer.step(batch())


def test_a_backbone_with_few_blocks():
    model = build(retinanet(num_modules=2, frozen_stages=3))
    trainer = trainer_of(model)
    trainer.runner.iter = 3
    trainer.step(batch())
    assert [len(span) for span in model.backbone.spans[0]][-2:] == [1, 1]


@pytest.mark.parametrize('share', [0, 1, -0.5, float('nan'), '0.7', True])
def test_no_share_of_a_training(share):
    with pytest.raises(LocalLearningError, match='FBAHook.exact_from=.*give a finite number'):
        FBAHook(exact_from=share)


def test_one_module_has_no_local_learning_to_end():
    with pytest.raises(LocalLearningError, match='exact_from=0.5 ends local.*give more modules'):
        trainer_of(detector(num_modules=1))


def spread_modules(rank):
    trainer_of(LocalModuleParallel(detector(num_modules=2)))


def test_modules_that_are_spread_over_processes():
    for error in run_in_processes(2, spread_modules):
        assert isinstance(error, LocalLearningError)
        assert "whole network in each process: set model_wrapper_cfg.type='Loc" in str(error)


def test_localize_hands_it_on():
    config = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert localize(config, exact_from=0.7).custom_hooks[-1].exact_from == 0.7
    assert 'exact_from' not in localize(config).custom_hooks[-1]


def test_what_is_measured_is_the_local_phase():
    step = TrainingStep(localize('fba_mm::demo/retinanet_r34_digits.py', exact_from=0.5))
    for _ in range(3):
        step(synthetic_batch(step.model, (1, 3, 64, 64)))
    assert step.model.backbone.num_modules == 4


def exact_step(rank):
    """The weights after an exact iteration on a batch of this process's own."""
    model = LocalDataParallel(detector())
    trainer = trainer_of(model)
    trainer.runner.iter = 3
    trainer.step(batch(images=1, seed=rank))
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_processes_take_the_mean_of_their_gradients():
    first, second = run_in_processes(2, exact_step)
    assert not isinstance(first, BaseException), first
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
