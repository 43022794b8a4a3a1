"""What has to hold on each device: each test runs on the CPU, and marked ``cuda`` on a GPU."""

import copy
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from fba_mm import (
    AmpLocalOptimWrapper,
    LocalDataParallel,
    LocalShardedDataParallel,
    localize,
)
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.compat.torch_versions import autocasts_to, fully_shard
from fba_mm.datasets.device_batches import Augmentation, DeviceBatches
from fba_mm.preflight.building import build_model

from .conftest import batch, build, own_head, retinanet
from .local_training import Trainer
from .test_analysis.small_configs import classifier
from .test_local.test_auxiliary.test_all_methods import METHODS
from .test_local.test_gradients import deferred_gradients, reached_parameters
from .test_projects.test_bank_uses import USES
from .test_tools.in_process import without_niceties

# The top of the pyramid has several positions: bfloat16 on the CPU needs that.
LARGE = 160
HEADS = dict(shared=lambda: dict(type='SLM'), own=lambda: dict(own_head(), channels=None))
each_head = pytest.mark.parametrize('head', HEADS)


def skip_without(dtype: str, device: str) -> None:
    if not autocasts_to(device, getattr(torch, dtype)):
        pytest.skip(f'{dtype} on a {device} needs torch 2.2')


def model_on(device, num_modules=4, head='own', **kwargs):
    """A RetinaNet on a device."""
    return build(retinanet(num_modules=num_modules, auxiliary=HEADS[head](), **kwargs)).to(device)


def assert_close(found, expected, **tolerance):
    """The same names, and on any device about the same numbers."""
    assert found.keys() == expected.keys() and found
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.cpu(), expected[name].cpu(), msg=name, **tolerance)


def direction(found, expected) -> float:
    """Cosine between all gradients of one model and of another."""
    a, b = (
        torch.cat([g[name].flatten().float().cpu() for name in expected]) for g in (found, expected)
    )
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


# The double precision of these leaves nothing to the order of sums.


def test_one_module_is_back_propagation(device):
    wrapped, plain = model_on(device, 1).double(), build(retinanet(num_modules=None)).to(device)
    plain.double()
    wrapper = OptimWrapper(torch.optim.SGD(plain.parameters(), lr=0.01))
    with mock.patch.object(OptimWrapper, 'step'), mock.patch.object(OptimWrapper, 'zero_grad'):
        plain.train_step(batch(), wrapper)
    expected = {f'{name}': p.grad for name, p in plain.named_parameters()}
    found = {
        name.replace('backbone.backbone.', 'backbone.'): gradient
        for name, gradient in Trainer(wrapped).gradients(batch()).items()
    }
    assert_close(found, expected)


@each_head
def test_backward_now_is_one_backward_later(device, head):
    model = model_on(device, head=head)
    trainer = Trainer(model)
    model.double()
    expected = deferred_gradients(model, batch(), 18, 'past')
    assert_close(trainer.gradients(batch()), expected)


@each_head
def test_a_loss_reaches_its_own_module_alone(device, head):
    model = model_on(device, head=head)
    reached = reached_parameters(model, Trainer(model), batch())
    own = [{n for n in names if n.startswith('backbone.')} for names in reached]
    assert len(own) == 4 and sum(map(len, own)) == len(set().union(*own))
    assert set().union(*reached) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize('optimizer', [torch.optim.SGD, torch.optim.AdamW])
def test_eager_steps_are_those_at_the_end(device, optimizer):
    states = []
    for apply in ('end', 'eager'):
        model = model_on(device).double()
        trainer = Trainer(model, optimizer=lambda p: optimizer(p, lr=1e-3), apply=apply)
        trainer.step(batch()), trainer.step(batch(seed=1))
        states.append(model.state_dict())
    assert_close(*states)


def test_accumulated_gradients(device):
    """Of two batches, and half of each: as MMEngine's wrapper divides them."""
    trainer = Trainer(model_on(device, norm='GN').double(), accumulative_counts=2)
    trainer.optim_wrapper.initialize_count_status(trainer.model, 0, 4)
    single = [
        Trainer(model_on(device, norm='GN').double()).gradients(batch(seed=i)) for i in range(2)
    ]
    applied = {}
    trainer.optim_wrapper.optimizer.register_step_pre_hook(
        lambda *_: applied.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    )
    trainer.step(batch(seed=0))
    assert not applied
    trainer.step(batch(seed=1))
    assert_close(applied, {name: (single[0][name] + single[1][name]) / 2 for name in applied})


def test_channels_last(device):
    found = Trainer(model_on(device).double().to(memory_format=torch.channels_last))
    expected = Trainer(model_on(device).double())
    assert_close(found.gradients(batch()), expected.gradients(batch()))


# Mixed precision


@pytest.mark.parametrize('apply', ['end', 'eager'])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision(device, dtype, apply):
    skip_without(dtype, device)
    model = model_on(device)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = Trainer(copy.deepcopy(model)).gradients(batch(LARGE))
    trainer = Trainer(
        model,
        AmpLocalOptimWrapper,
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        dtype=dtype,
        apply=apply,
        loss_scale=1024.0,
    )
    trainer.step(batch(LARGE))
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    assert direction(moved, expected) > 0.98
    size = sum(g.square().sum() for g in expected.values()).sqrt()
    assert sum(m.square().sum() for m in moved.values()).sqrt() == pytest.approx(
        0.01 * size.item(), rel=0.05
    )


@pytest.mark.parametrize('apply', ['end', 'eager'])
def test_an_overflow_changes_nothing_but_the_scale(device, apply):
    skip_without('float16', device)
    model = model_on(device)
    settings = dict(dtype='float16', apply=apply)
    trainer = Trainer(
        model,
        AmpLocalOptimWrapper,
        loss_scale=dict(init_scale=2.0**60, growth_interval=1),
        **settings,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.step(batch(LARGE))
    assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)
    assert trainer.optim_wrapper.loss_scaler.get_scale() == 2.0**59
    model = model_on(device)
    trainer = Trainer(
        model,
        AmpLocalOptimWrapper,
        loss_scale=dict(init_scale=1024.0, growth_interval=1),
        **settings,
    )
    trainer.step(batch(LARGE))
    assert trainer.optim_wrapper.loss_scaler.get_scale() == 2048
    assert not torch.equal(model.bbox_head.retina_cls.bias, before['bbox_head.retina_cls.bias'])


# Methods and uses of the bank, each with tensors of its own


def classification_step(device, auxiliary, scope='past'):
    """Losses of two steps of a classifier on a device."""
    torch.manual_seed(0)
    model = build_model(localize(classifier('BN'), 3, auxiliary=dict(auxiliary)))
    model.init_weights()
    trainer = Trainer(model.to(device).train(), scope=scope)
    data = synthetic_batch(model, (4, 3, 32, 32))
    losses = [trainer.step(data), trainer.step(data)][-1]
    return {**losses, **{name: float(value) for name, value in trainer.log.items()}}


@pytest.mark.parametrize('method', METHODS)
def test_methods(device, method):
    auxiliary = dict(METHODS[method], num_classes=5)
    found = classification_step(device, auxiliary)
    assert len(found) > 3 and all(
        0 < value < 100 for name, value in found.items() if 'loss' in name
    )


@pytest.mark.parametrize('use', USES)
def test_uses_of_the_bank(device, use):
    head = dict(type='ImageClassifier', neck=dict(type='GlobalAveragePooling'))
    head['head'] = dict(type='LinearClsHead', num_classes=5, in_channels=64)
    auxiliary = dict(type='SLM', head=head, bank_use=USES[use])
    found = classification_step(device, auxiliary, 'all')
    assert any('loss_bank' in name for name in found) or use == 'GatedContext'


# What a runner does


class Boxes(list):
    """Two batches of two images."""

    metainfo = dict(classes=('a', 'b', 'c'))

    def __init__(self):
        for seed in range(2):
            data = batch(seed=seed)
            self += [dict(inputs=i, data_samples=s) for i, s in zip(*data.values())]


def trained(work_dir, device, **settings):
    """A runner that has trained."""
    loader = DataLoader(
        Boxes(), 2, collate_fn=lambda some: {k: [x[k] for x in some] for k in some[0]}
    )
    with mock.patch('mmengine.device.utils.DEVICE', device), without_niceties():
        runner = Runner(
            build(retinanet(auxiliary=HEADS['own']())),
            str(work_dir),
            loader,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(
                type='AmpLocalOptimWrapper',
                dtype='float16',
                optimizer=dict(type='SGD', lr=1e-3, momentum=0.9),
            ),
            custom_hooks=[dict(type='FBAHook'), dict(type='EMAHook', momentum=0.1)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            default_scope='mmdet',
            experiment_name=f'{work_dir.name}_{device}',
            log_level='ERROR',
            **settings,
        )
        runner.train()
    return runner


def test_a_resumed_training_with_averaged_weights(device, tmp_path):
    skip_without('float16', device)
    whole = trained(tmp_path / 'whole', device)
    assert {p.device.type for p in whole.model.parameters()} == {device}
    trained(
        tmp_path / 'resumed', device, load_from=str(tmp_path / 'whole/epoch_1.pth'), resume=True
    )
    found, expected = (
        torch.load(tmp_path / name / 'epoch_2.pth', map_location='cpu', weights_only=False)
        for name in ('resumed', 'whole')
    )
    tolerance = dict(rtol=0, atol=0) if device == 'cpu' else dict(rtol=1e-2, atol=1e-4)
    for key in ('state_dict', 'ema_state_dict'):
        assert_close(found[key], expected[key], **tolerance)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(expected['state_dict'].values(), expected['ema_state_dict'].values())
    )


def test_batches_that_lie_on_the_device(device):
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    settings = dict(batch_size=4, augmentation=Augmentation(padding=2, flip_prob=0.5))
    found, expected = (
        [
            (data['inputs'], sample.gt_label, sample.sample_idx)
            for data in DeviceBatches(images, torch.arange(10), device=where, **settings)
            for sample in data['data_samples']
        ]
        for where in (device, 'cpu')
    )
    assert len(found) == 10
    for (inputs, label, index), (inputs_there, label_there, index_there) in zip(found, expected):
        assert inputs.device.type == device and torch.equal(inputs.cpu(), inputs_there)
        assert label.item() == label_there.item() == index == index_there


# Wrappers for several processes, in one


@pytest.fixture()
def process_group(device, tmp_path):
    """One process that calls itself several."""
    dist.init_process_group(
        'nccl' if device == 'cuda' else 'gloo',
        init_method=f'file://{tmp_path}/store',
        rank=0,
        world_size=1,
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('apply', ['end', 'eager'])
@pytest.mark.parametrize(
    'wrapper',
    [
        LocalDataParallel,
        pytest.param(
            LocalShardedDataParallel,
            marks=pytest.mark.skipif(fully_shard is None, reason='needs torch 2.6'),
        ),
    ],
)
def test_wrappers_train_alike(device, process_group, wrapper, apply):
    plain = model_on(device).double()
    wrapped = wrapper(copy.deepcopy(plain))
    steps = []
    for model in (plain, wrapped):
        trainer = Trainer(model, apply=apply, hook={})
        steps.append([trainer.step(batch(seed=i)) for i in range(2)])
        assert len(steps[-1][0]) > 1
    for found, expected in zip(*steps):
        assert found == pytest.approx(expected)
