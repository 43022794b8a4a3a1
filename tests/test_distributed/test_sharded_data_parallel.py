"""Processes with a part of the batch and of each parameter are one process with all of it."""

import copy
import os
import signal
import weakref

import pytest
import torch
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from fba_mm import (
    AmpLocalOptimWrapper,
    LocalLearningError,
    LocalOptimWrapper,
    LocalShardedDataParallel,
)
from fba_mm.compat.torch_versions import DTensor, fully_shard
from fba_mm.distributed.processes import lost_processes

from ..local_training import Trainer
from ..several_processes import run_in_processes
from .test_data_parallel import IMAGES, SETTINGS, assert_same, joint_batch, model_of, part_of
from .test_module_parallel import MODULES, OWN_HEAD, Lamb, adam, batch
from .test_module_parallel import network as small

pytestmark = [pytest.mark.slow, pytest.mark.skipif(fully_shard is None, reason='needs torch 2.6')]

STEPS = 5
# Head, settings of the optimizer wrapper, iterations of a step, and whether parts are prefetched.
CASES = [
    ('own', 'eager', 2, True),
    ('shared', 'eager', 1, False),
    ('shared', 'clipped', 1, True),
    ('own', 'eager, clipped', 1, False),
]


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
        nn.init.normal_(p, std=0.05)
    nn.init.zeros_(model.bbox_head.retina_reg.bias)
    return model


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.003, foreach=True)


def trained(rank, count, head, settings, counts, prefetch):
    """Parameters and the optimizer's state after some steps on a process's part of the batches."""
    model = network(head)
    if rank:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)
    if count > 1:
        model = LocalShardedDataParallel(model, prefetch=prefetch)
    trainer = Trainer(
        model,
        optimizer=adamw if settings == 'eager' else None,
        accumulative_counts=counts,
        **copy.deepcopy(SETTINGS[settings]),
    )
    wrapper = trainer.optim_wrapper
    wrapper.initialize_count_status(model, 0, STEPS * counts)
    for step in range(STEPS * counts):
        trainer.step(part_of(joint_batch(step, IMAGES), rank, count))
    if count == 1:
        return model.state_dict(), wrapper.state_dict()
    with model.placement.whole_model(wrapper):
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


# What is whole, and when


def whole_modules(head, prefetch=False):
    """In two steps, the parts that are whole: when a module runs, and when its optimizer steps.

    With ``prefetch``, also those that are on their way when a module runs.
    """
    model = LocalShardedDataParallel(
        small(auxiliary=OWN_HEAD if head == 'own' else {}), prefetch=prefetch
    )
    whole = [weakref.ref(p) for p in model.parameters()]
    trainer = Trainer(model, optimizer=adam, apply='eager')
    assert [p for p in whole if p() is not None] == []
    parts, backbone, found = model.placement.parts, model.module.backbone, []

    def gathered():
        return [k for k, part in enumerate(parts) if part.gathered]

    def seen(k):
        on_their_way = [n for n, part in enumerate(parts) if part._under_way is not None]
        found.append((k, gathered(), on_their_way) if prefetch else (k, gathered()))

    for k, module in enumerate(backbone.module_segments):
        layer = backbone.segments[module[0]].submodules[0]
        backbone.backbone.get_submodule(layer).register_forward_pre_hook(lambda *_, k=k: seen(k))
    for step in range(2):
        trainer.step(batch(step))
        assert gathered() == []
    pieces = [
        *model.module.parameters(),
        *(
            value
            for state in trainer.optim_wrapper.optimizer.state.values()
            for name, value in state.items()
            if name != 'step'
        ),
    ]
    assert all(isinstance(piece, DTensor) for piece in pieces)
    return found, [
        piece.to_local().untyped_storage().nbytes() / (piece.numel() * 4)
        for piece in pieces
        if piece.shape[0] % 2 == 0
    ]


def validated(rank):
    """What the model says of images before it is divided, after, and after training."""
    model = LocalShardedDataParallel(small())
    trainer = Trainer(model, optimizer=adam)
    inputs = batch()['inputs']
    before = small().eval()(inputs)
    model.placement.gather_weights()
    model.eval()
    divided = model(inputs)
    model.train()
    trainer.step(batch())
    model.placement.gather_weights()
    with model.placement.whole_weights():
        # One process alone saves.
        saved = copy.deepcopy(model.module.state_dict()) if rank == 0 else None
    if rank == 0:
        model.module.state_dict()
    model.placement.gather_weights()
    model.eval()
    after = model(inputs)
    return [tuple(x.detach() for x in maps) for maps in (before, divided, after)], saved


def refusals():
    """What is said of each model and setting."""

    def message_of(model=None, wrapper=LocalOptimWrapper, scope='past', hooks=(), **settings):
        try:
            model = LocalShardedDataParallel(model or small())
            trainer = Trainer(model, wrapper, scope=scope, **settings)
            trainer.runner.hooks = hooks
            trainer.hook.before_run(trainer.runner)
            trainer.step(batch())
        except LocalLearningError as error:
            return str(error)

    mixed, unused, tied, strided = small(), small(), small(), small()
    mixed.backbone.backbone.blocks[0][0].double()
    unused.fc.extra = nn.Parameter(torch.ones(3))
    blocks = tied.backbone.backbone.blocks
    blocks[3][1].weight = blocks[2][1].weight
    strided.to(memory_format=torch.channels_last)
    return {
        'fits': message_of(),
        'backbone': message_of(nn.Linear(1, 1)),
        'scope': message_of(scope='all'),
        'next module': message_of(small(auxiliary=dict(type='MAN', host=OWN_HEAD))),
        'optimizer': message_of(optimizer=lambda p: Lamb(list(p)), apply=None),
        'scaler': message_of(wrapper=AmpLocalOptimWrapper, dtype='float16'),
        'average': message_of(hooks=[EMAHook()]),
        'checkpoints': message_of(hooks=[CheckpointHook()]),
        'mixed': message_of(mixed),
        'unused': message_of(unused),
        'tied': message_of(tied),
        'strided': message_of(strided),
    }


def trained_branches(find_unused):
    """A parameter that process 0 alone uses, and one that nobody does."""
    model = small(num_modules=2)
    fc, loss = model.fc, model.loss
    fc.some = nn.Parameter(torch.ones(4))
    fc.none = nn.Parameter(torch.ones(4))

    def uneven(*args):
        losses = loss(*args)
        if torch.distributed.get_rank() == 0:
            losses['loss'] = losses['loss'] + fc.some.sum()
        return losses

    model.loss = uneven
    model = LocalShardedDataParallel(model, find_unused_parameters=find_unused)
    trainer = Trainer(model, optimizer=lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.5))
    trainer.step(batch())
    model.placement.gather_weights()
    return fc.some.detach(), fc.none.detach()


def inspected(rank):
    return dict(
        own=whole_modules('own'),
        shared=whole_modules('shared'),
        prefetched=whole_modules('own', True)[0],
        validated=validated(rank),
        refusals=refusals(),
        branches=trained_branches(True),
    )


@pytest.fixture(scope='module')
def found():
    outcomes = run_in_processes(2, inspected)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    return outcomes


def test_one_module_is_whole_at_a_time(found):
    """The model's own neck and head with the last module, or always if modules share them."""
    last, rest = MODULES - 1, MODULES
    for outcome in found:
        own, shares = outcome['own']
        assert own == 2 * [*((k, [k]) for k in range(last)), (last, [last, rest])]
        assert outcome['shared'][0] == 2 * [(k, [k, rest]) for k in range(MODULES)]
        assert shares and all(share == 0.5 for share in shares)


def test_the_next_module_is_on_its_way(found):
    """Neck and head travel with the last module; nothing is left to travel while that one runs."""
    last, rest = MODULES - 1, MODULES
    expected = [*((k, [k], [k + 1]) for k in range(last - 1)), (last - 1, [last - 1], [last, rest])]
    for outcome in found:
        assert outcome['prefetched'] == 2 * [*expected, (last, [last, rest], [])]


def test_validation_sees_all_weights(found):
    for (before, divided, after), _ in (outcome['validated'] for outcome in found):
        assert all(torch.equal(*maps) for maps in zip(before, divided))
        assert not any(torch.equal(*maps) for maps in zip(before, after))
    assert all(
        torch.equal(*maps) for maps in zip(found[0]['validated'][0][2], found[1]['validated'][0][2])
    )
    # What one process saves is what a model in one process loads.
    alone = small()
    alone.load_state_dict(found[0]['validated'][1])
    assert all(
        torch.equal(*maps)
        for maps in zip(alone.eval()(batch()['inputs']), found[0]['validated'][0][2])
    )


def test_parameters_that_not_every_process_uses(found):
    for outcome in found:
        some, none = outcome['branches']
        assert torch.allclose(some, torch.ones(4) - 0.5 - 0.5)
        assert torch.equal(none, torch.ones(4))


def test_refusals(found):
    for messages in (outcome['refusals'] for outcome in found):
        assert messages.pop('fits') is None
        for name, fix in {
            'backbone': 'found no LocalBackbone in the model: wrap the backbone',
            'scope': "set scope='past'",
            'next module': 'MAN follows the weights of the next module',
            'optimizer': 'Lamb may look at all gradients at once',
            'scaler': "set optim_wrapper.dtype='bfloat16'",
            'average': 'EMAHook averages a network that is whole',
            'checkpoints': "set default_hooks.checkpoint.type='AtomicCheckpointHook'",
            'mixed': 'parameters of torch.float32 and torch.float64 in one module',
            'unused': '1 parameters got no gradient, such as fc.extra: freeze them',
            'tied': 'blocks.2.1.weight is part of modules 3 and 4',
            'strided': 'leave the memory format channels_last out',
        }.items():
            message = messages.pop(name)
            assert message is not None and fix in message, (name, message)
            assert '\n' not in message
        assert not messages


def survived(rank):
    """Process 1 is killed between two steps."""
    trainer = Trainer(LocalShardedDataParallel(small()))
    trainer.step(batch())
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    with lost_processes():
        trainer.step(batch())


def test_a_killed_process():
    survivor, killed = run_in_processes(2, survived)
    assert killed == -signal.SIGKILL
    assert isinstance(survivor, LocalLearningError)
    assert 'another process of this job was lost' in str(survivor)


def test_one_process():
    with pytest.raises(LocalLearningError, match='start them with tools/dist_train.sh'):
        LocalShardedDataParallel(nn.Linear(1, 1))


def test_registered():
    assert MODEL_WRAPPERS.get('LocalShardedDataParallel') is LocalShardedDataParallel
