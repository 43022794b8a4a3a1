"""Several processes with a part of the batch each are one process with all of it."""

import copy
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, MODELS
from torch import nn

from fba_mm import (
    AmpLocalOptimWrapper,
    LocalDataParallel,
    LocalLearningError,
    LocalOptimWrapper,
    LocalShardedDataParallel,
)
from fba_mm.distributed.gradient_reducer import _Bucket

from ..conftest import batch, build, needs_float16, own_head, retinanet
from ..local_training import Trainer
from ..several_processes import run_in_processes

STEPS = 5
IMAGES = 2
SETTINGS = {
    'end': dict(apply='end'),
    'eager': dict(apply='eager'),
    'clipped': dict(apply='end', clip_grad=dict(max_norm=0.5)),
    'eager, clipped': dict(apply='eager', clip_grad=dict(max_norm=0.1)),
}
# Each pair of head, apply and counts at least once.
CASES = [
    ('own', 'end', 1),
    ('own', 'eager', 2),
    ('shared', 'end', 2),
    ('shared', 'eager', 1),
    ('shared', 'clipped', 1),
    ('own', 'eager, clipped', 2),
    ('own, image by image', 'eager', 1),
    ('shared, image by image', 'end', 1),
]


def model_of(head: str, norm: str = 'GN') -> nn.Module:
    model = build(
        retinanet(
            num_modules=3, norm=norm, auxiliary=own_head() if 'own' in head else dict(type='SLM')
        )
    ).double()
    if 'image by image' in head:
        model.backbone.head_batch_size = 1  # Of two in each process.
    return model


def joint_batch(seed: int, images: int, size: int = 32) -> dict:
    """Different images with the same boxes: the detector divides its loss by matched anchors."""
    data = batch(size=size, images=images, seed=seed)
    data['data_samples'] = [copy.deepcopy(data['data_samples'][0]) for _ in data['inputs']]
    return data


def part_of(data: dict, rank: int, count: int) -> dict:
    size = len(data['inputs']) // count
    return {key: value[rank * size : (rank + 1) * size] for key, value in data.items()}


def trained(rank, count, head, settings, counts, norm='GN', size=32, images=IMAGES, wrapper=None):
    """The parameters after some steps on a process's part of the batches."""
    model = model_of(head, norm)
    # Other weights than process 0's: they are to be taken from there.
    if rank:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)
    if count > 1:
        model = wrapper(model) if wrapper else LocalDataParallel(model, bucket_cap_mb=0.02)
    settings = copy.deepcopy(SETTINGS[settings])
    images *= 2 if 'image by image' in head else 1
    trainer = Trainer(model, accumulative_counts=counts, **settings)
    trainer.optim_wrapper.initialize_count_status(model, 0, STEPS * counts)
    for step in range(STEPS * counts):
        trainer.step(part_of(joint_batch(step, images, size), rank, count))
    if isinstance(model, LocalShardedDataParallel):
        model.placement.gather_weights()
    return {
        name.replace('module.', '', 1) if count > 1 else name: p.detach()
        for name, p in model.named_parameters()
    }


def call(function, *args, **kwargs):
    """Its outcomes in two processes."""
    return run_in_processes(2, function, *args, **kwargs)


def all_cases(rank, count):
    return {case: trained(rank, count, *case) for case in CASES}


def assert_same(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        error = (ours[name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
        assert error <= tolerance, (name, float(error))


@pytest.fixture(scope='module')
def joint():
    return run_in_processes(2, all_cases, 2), run_in_processes(1, all_cases, 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=str)
def test_parameters_are_those_of_the_joint_batch(case, joint):
    processes, alone = joint
    assert not any(isinstance(outcome, BaseException) for outcome in processes), processes
    start = dict(model_of(case[0]).named_parameters())
    assert all(not torch.equal(alone[case][name], start[name]) for name in start)
    for parameters in processes:
        assert_same(parameters[case], alone[case])


def trained_in_two_ways(rank, count, case):
    return [
        trained(rank, count, *case, images=count, wrapper=wrapper)
        for wrapper in (None, LocalShardedDataParallel)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    'count, case', [(3, ('shared', 'eager', 1)), (4, ('own', 'end', 1))], ids=str
)
def test_more_processes(count, case):
    """Also with parameters in pieces, some of which are larger than others, or empty."""
    alone = trained(0, 1, *case, images=count)
    outcomes = run_in_processes(count, trained_in_two_ways, count, case)
    for outcome in outcomes:
        assert isinstance(outcome, list), outcomes
        for parameters in outcome:
            assert_same(parameters, alone)


# What travels, and when


def recorded(rank, iterations=1, unused=False, **settings):
    """Events of each iteration in order, as (what, module), and the parameters in buckets."""
    model = LocalDataParallel(model_of('shared'), bucket_cap_mb=0.02, find_unused_parameters=unused)
    trainer = Trainer(model, **settings)
    local_backbone = model.module.backbone
    last = local_backbone.num_modules - 1
    owner = {p: k for k in range(last) for p in local_backbone.local_parameters(k)}
    names = {p: name.replace('module.', '', 1) for name, p in model.named_parameters()}
    events, sent = [], []
    for k, module in enumerate(local_backbone.module_segments):
        layer = local_backbone.segments[module[0]].submodules[0]
        local_backbone.backbone.get_submodule(layer).register_forward_pre_hook(
            lambda *_, k=k: events.append(('forward', k))
        )
    start, finish = _Bucket.start, _Bucket.finish

    def on_start(bucket, *args):
        events.append(('start', owner.get(bucket.parameters[0], last)))
        sent.extend(names[p] for p in bucket.parameters)
        start(bucket, *args)

    def on_finish(bucket):
        events.append(('finish', owner.get(bucket.parameters[0], last)))
        finish(bucket)

    found = []
    with mock.patch.object(_Bucket, 'start', on_start), mock.patch.object(
        _Bucket, 'finish', on_finish
    ):
        for _ in range(iterations):
            trainer.step(batch(size=32, seed=rank))
            found.append((list(events), sorted(sent)))
            events.clear()
            sent.clear()
    return found, sorted(names.values())


@pytest.mark.parametrize('unused', [False, True])
@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_a_modules_gradients_travel_during_the_next_forward_pass(apply, unused):
    ((events, sent),) = call(recorded, 1, unused, apply=apply)[0][0]
    place = {
        what: (events.index(what), len(events) - events[::-1].index(what) - 1) for what in events
    }
    for k in (0, 1):
        assert place['forward', k][1] < place['start', k][0]
        assert place['start', k][1] < place['forward', k + 1][0] < place['finish', k][0]
        # Eager steps free a module's gradients before the next one's are there.
        assert (place['finish', k][1] < place['start', k + 1][0]) == (apply == 'eager')
    assert events.count(('start', 0)) > 1


def test_every_gradient_travels_once_in_a_step():
    """Also those of the head, of which each module and each iteration has a part."""
    for found, names in call(recorded, 4, apply='eager', accumulative_counts=2):
        assert [sent for _, sent in found] == [[], names, [], names]


def test_buckets_start_during_the_backward_pass():
    """The first before the last is complete."""
    assert call(started_early) == [True, True]


def started_early(rank):
    model = LocalDataParallel(model_of('own'), bucket_cap_mb=0.02)
    trainer = Trainer(model)
    first = model.module.backbone.backbone.conv1.weight
    complete, events = [], []
    first.register_post_accumulate_grad_hook(complete.append)
    with mock.patch.object(_Bucket, 'start', autospec=True, side_effect=_Bucket.start) as start:
        first.register_hook(lambda _: events.append(start.call_count))
        trainer.step(batch(size=32))
    return len(complete) == 1 and events[0] > 0


# Settings of distributed training


class SumOverProcesses(torch.autograd.Function):
    """A sum, whose gradient is a sum too."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return SumOverProcesses.forward(ctx, gradient)


class JointBatchNorm(nn.BatchNorm2d):
    """What torch's SyncBatchNorm does, which runs on GPUs alone."""

    def forward(self, x):
        def joint_mean(x):
            mean = x.mean((0, 2, 3), keepdim=True)
            if not dist.is_initialized():
                return mean
            return SumOverProcesses.apply(mean / dist.get_world_size())

        centered = x - joint_mean(x)
        x = centered / (joint_mean(centered**2) + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def trained_with_joint_norm(rank, count):
    MODELS.register_module(module=JointBatchNorm)
    return trained(rank, count, 'own', 'eager', 1, norm='JointBatchNorm', size=64)


def test_batch_norm_over_processes():
    """It communicates in the same backward passes."""
    (expected,) = run_in_processes(1, trained_with_joint_norm, 1)
    for parameters in run_in_processes(2, trained_with_joint_norm, 2):
        assert_same(parameters, expected)


def overflowing(rank, apply):
    """Parameters and scales over iterations in which process 1's loss overflows once."""
    model = LocalDataParallel(build(retinanet(num_modules=3, norm='GN')))
    trainer = Trainer(
        model, AmpLocalOptimWrapper, dtype='float16', apply=apply, loss_scale=dict(init_scale=256.0)
    )
    update_local = trainer.optim_wrapper.update_local
    history = []
    for step in range(3):
        factor = float('inf') if (rank, step) == (1, 1) else 1
        trainer.optim_wrapper.update_local = lambda loss, parameters, factor=factor: update_local(
            loss * factor, parameters
        )
        trainer.step(batch(size=32, seed=rank))
        scale = trainer.optim_wrapper.loss_scaler.get_scale()
        history.append((scale, [p.detach().clone() for p in model.module.backbone.parameters()]))
    return history


@needs_float16
@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_an_overflow_in_one_process_is_one_in_all(apply):
    first, second = run_in_processes(2, overflowing, apply)
    assert [scale for scale, _ in first] == [scale for scale, _ in second] == [256.0, 128.0, 128.0]
    for (_, ours), (_, theirs) in zip(first, second):
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, theirs))
    assert not all(torch.equal(a, b) for a, b in zip(first[1][1], first[2][1]))


class Branches(BaseModel):
    """Process 0 uses one branch and process 1 the other; a third serves nobody."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.branches[dist.get_rank()](inputs).mean())


def trained_branches(rank, apply, find_unused_parameters):
    torch.manual_seed(0)
    model = LocalDataParallel(Branches(), find_unused_parameters=find_unused_parameters)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.5)
    model.train_step(dict(inputs=torch.ones(4, 2)), LocalOptimWrapper(optimizer, apply=apply))
    return before, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_parameters_without_gradient(apply):
    for before, after in call(trained_branches, apply, True):
        # The mean of a gradient of ones here and none there.
        for old, new in zip(before[:2], after[:2]):
            assert torch.allclose(new, old - 0.5 - 0.5 * old)
        assert torch.equal(after[2], before[2])
    for error in call(trained_branches, apply, False):
        assert isinstance(error, LocalLearningError)
        assert 'branches.2.weight' in str(error) and 'find_unused_parameters=True' in str(error)


def unsynced(rank):
    model = LocalDataParallel(model_of('own'))
    trainer = Trainer(model)
    with model.no_sync():
        own = trainer.gradients(batch(size=32, seed=rank))
    return own, trainer.gradients(batch(size=32, seed=rank))


def test_no_sync():
    (first, mean), (second, _) = call(unsynced)
    assert not torch.allclose(
        first['module.bbox_head.retina_cls.weight'], second['module.bbox_head.retina_cls.weight']
    )
    for name, gradient in mean.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2)


def broadcast(rank, every_step):
    model = build(retinanet(num_modules=3, norm='BN'))
    statistics = model.backbone.backbone.bn1.running_mean
    statistics.fill_(rank)
    model = LocalDataParallel(model, broadcast_buffers=every_step)
    found = [float(statistics[0])]
    trainer = Trainer(model)
    for _ in range(2):
        trainer.step(batch(size=32, seed=rank))
    model.module.backbone.backbone.bn1.register_forward_pre_hook(
        lambda norm, _: found.append(norm.running_mean.clone())
    )
    trainer.step(batch(size=32, seed=rank))
    return found


def test_buffers():
    """They start from process 0's; whether they stay so is the config's choice, as in torch."""
    for every_step in (False, True):
        (first, ours), (second, theirs) = call(broadcast, every_step)
        assert first == second == 0
        assert torch.equal(ours, theirs) == every_step


# What a user gets wrong


def wrapped_differently(rank):
    LocalDataParallel(build(retinanet(num_modules=3 + rank)))


def test_different_models_are_refused_in_every_process():
    for error in call(wrapped_differently):
        assert isinstance(error, LocalLearningError)
        assert 'process 1 has another model than process 0' in str(error)


def stepped_with_a_stock_wrapper(rank):
    model = LocalDataParallel(Branches())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train_step(dict(inputs=torch.ones(4, 2)), OptimWrapper(optimizer))


def test_stock_optimizer_wrapper():
    for error in call(stepped_with_a_stock_wrapper):
        assert isinstance(error, LocalLearningError)
        assert "optim_wrapper.type='LocalOptimWrapper'" in str(error)


class Twice(BaseModel):
    """One layer, checkpointed twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = inputs.requires_grad_()
        for _ in range(2):
            x = torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=True)
        return dict(loss=x.mean())


def stepped_in_parts(rank):
    model = LocalDataParallel(Twice())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train_step(dict(inputs=torch.ones(4, 2)), LocalOptimWrapper(optimizer))


def test_gradients_in_several_parts():
    for error in call(stepped_in_parts):
        assert isinstance(error, LocalLearningError)
        assert 'layer' in str(error) and 'in several parts' in str(error)


def test_one_process():
    with pytest.raises(LocalLearningError, match='start them with tools/dist_train.sh'):
        LocalDataParallel(nn.Linear(1, 1))


def test_bucket_size():
    error, _ = call(wrapped_in_buckets_of, 0)
    assert isinstance(error, LocalLearningError) and 'bucket_cap_mb=0' in str(error)


def wrapped_in_buckets_of(rank, bucket_cap_mb):
    LocalDataParallel(nn.Linear(1, 1), bucket_cap_mb=bucket_cap_mb)


def test_registered():
    assert MODEL_WRAPPERS.get('LocalDataParallel') is LocalDataParallel
