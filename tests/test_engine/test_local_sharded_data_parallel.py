"""Processes with a part of the batch and of each parameter are one process with all of it."""
import copy

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.distributed.tensor import DTensor

from fba_mm import LocalLearningError, LocalShardedDataParallel

from ..local_training import Trainer
from ..several_processes import run_in_processes
from .test_local_data_parallel import (IMAGES, SETTINGS, assert_same, joint_batch, model_of,
                                       part_of)

STEPS = 5
# Head, settings of the optimizer wrapper, and iterations of a step.
CASES = [('own', 'end', 1), ('own', 'eager', 2), ('shared', 'eager', 1), ('shared', 'end', 2),
         ('shared', 'clipped', 1), ('own', 'eager, clipped', 1)]


class Scaled(nn.Conv2d):
    """With a parameter that can't be divided."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x):
        return super().forward(x) * self.scale


def network(head):
    model = model_of(head)
    model.bbox_head.retina_reg = Scaled(16, 4, 3, padding=1).double()
    layer = model.backbone.backbone.layer1[0]
    layer.conv1 = Scaled(8, 8, 3, padding=1, bias=False).double()
    model.backbone.backbone.layer2[0].conv1.weight.requires_grad_(False)
    for p in (model.bbox_head.retina_reg.weight, layer.conv1.weight):
        torch.manual_seed(1)
        nn.init.normal_(p, std=.05)
    nn.init.zeros_(model.bbox_head.retina_reg.bias)
    return model


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=.003, foreach=True)


def trained(rank, count, head, settings, counts):
    """Parameters and the optimizer's state after some steps on a process's part of the batches."""
    model = network(head)
    if rank:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)
    if count > 1:
        model = LocalShardedDataParallel(model)
    trainer = Trainer(model, optimizer=adamw if settings == 'eager' else None,
                      accumulative_counts=counts, **copy.deepcopy(SETTINGS[settings]))
    wrapper = trainer.optim_wrapper
    wrapper.initialize_count_status(model, 0, STEPS * counts)
    for step in range(STEPS * counts):
        trainer.step(part_of(joint_batch(step, IMAGES), rank, count))
    if count == 1:
        return model.state_dict(), wrapper.state_dict()
    with model.whole_state_dict(), model.whole_optimizer(wrapper):
        return copy.deepcopy(model.module.state_dict()), copy.deepcopy(wrapper.state_dict())


def all_cases(rank, count):
    return {case: trained(rank, count, *case) for case in CASES}


@pytest.fixture(scope='module')
def joint():
    return run_in_processes(2, all_cases, 2), run_in_processes(1, all_cases, 1)[0]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_training_is_that_of_the_joint_batch(case, joint):
    processes, alone = joint
    assert not any(isinstance(outcome, BaseException) for outcome in processes), processes
    weights, optimizer = processes[0][case]
    expected, expected_optimizer = alone[case]
    start = network(case[0])
    for name, p in start.named_parameters():
        assert torch.equal(expected[name], p) != p.requires_grad, name
    assert_same(weights, expected)
    assert optimizer['param_groups'] == expected_optimizer['param_groups']
    assert optimizer['state'].keys() == expected_optimizer['state'].keys()
    for i, state in expected_optimizer['state'].items():
        assert_same(optimizer['state'][i], state)


def test_registered():
    assert MODEL_WRAPPERS.get('LocalShardedDataParallel') is LocalShardedDataParallel
