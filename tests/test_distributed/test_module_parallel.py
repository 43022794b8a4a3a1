"""Modules in several processes are those of one process, at work on different batches at once."""

import copy
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODEL_WRAPPERS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fba_mm import AmpLocalOptimWrapper, LocalLearningError, LocalModuleParallel, LocalOptimWrapper
from fba_mm.local import Auxiliary
from fba_mm.local.partition import Segment, Unrolled, backbone_family, run_submodule

from ..local_training import Trainer
from ..several_processes import run_in_processes

pytestmark = pytest.mark.slow

STEPS = 5
MODULES = 5
CLASSES = 3
# Channels and stages of the blocks; the last of a stage is a level, and its first has stride 2.
WIDTHS = (4, 4, 6, 6, 8, 8)
STAGES = (0, 0, 1, 1, 2, 2)


def block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


@MODELS.register_module()
class SkippingNet(BaseModule):
    """Returns three maps; the last block also reads the first one's output, as long skips do."""

    def __init__(self):
        super().__init__()
        widths = (3, *WIDTHS)
        self.blocks = nn.ModuleList(
            block(widths[i], widths[i + 1], 2 - i % 2) for i in range(len(WIDTHS))
        )

    def forward(self, x):
        maps = []
        for i, run in enumerate(self.blocks):
            x = run(x)
            if i == 0:
                first = x
            if i == len(self.blocks) - 1:
                x = add_pooled(self, x, first)
            maps.append(x)
        return tuple(maps[1::2])


def add_pooled(backbone, x, first):
    return x + F.adaptive_avg_pool2d(first.mean(1, keepdim=True), x.shape[-2:])


def run_last(backbone, x, first, path):
    return add_pooled(backbone, backbone.get_submodule(path)(x), first)


@backbone_family(SkippingNet)
def unroll_skipping_net(backbone):
    last = len(WIDTHS) - 1
    return Unrolled(
        [
            Segment(
                path,
                partial(run_last if i == last else run_submodule, path=path),
                (path,),
                stage=STAGES[i],
                level=i // 2 if i % 2 else None,
                keeps=None if i else 'first',
                reads=('first',) if i == last else (),
            )
            for i, path in enumerate(f'blocks.{i}' for i in range(len(WIDTHS)))
        ],
        block,
    )


@MODELS.register_module()
class MapsClassifier(BaseModel):
    """Learns classes from all maps of a backbone."""

    def __init__(self, backbone, norm=None, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        width = sum(WIDTHS[1::2])
        self.norm = norm(width) if norm else nn.BatchNorm1d(width)
        self.fc = nn.Linear(width, CLASSES)

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def loss(self, inputs, data_samples):
        pooled = torch.cat([x.flatten(2).mean(2) for x in self.extract_feat(inputs)], 1)
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=F.cross_entropy(self.fc(self.norm(pooled)), labels))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.loss(inputs, data_samples) if mode == 'loss' else self.extract_feat(inputs)


OWN_HEAD = dict(type='SLM', head=dict(type='MapsClassifier'))


def network(num_modules=MODULES, auxiliary=OWN_HEAD, norm=None):
    torch.manual_seed(0)
    return MapsClassifier(
        dict(
            type='LocalBackbone',
            backbone=dict(type='SkippingNet'),
            num_modules=num_modules,
            auxiliary=copy.deepcopy(auxiliary),
        ),
        norm,
    ).train()


def batch(seed=0, size=16, images=4):
    generator = torch.Generator().manual_seed(seed)
    return dict(
        inputs=torch.rand(images, 3, size, size, generator=generator),
        data_samples=[
            BaseDataElement(gt_label=torch.randint(CLASSES, (1,), generator=generator))
            for _ in range(images)
        ],
    )


# By name: the auxiliary network, and settings of the optimizer wrapper.
CASES = {
    'eager': (OWN_HEAD, dict(apply='eager')),
    'end': (OWN_HEAD, dict(apply='end')),
    'accumulating': (OWN_HEAD, dict(apply='eager', accumulative_counts=2)),
    'accumulating to the end': (OWN_HEAD, dict(apply='end', accumulative_counts=2)),
    'clipped': (OWN_HEAD, dict(apply='eager', clip_grad=dict(max_norm=0.1))),
    'bfloat16': (OWN_HEAD, dict(apply='eager', wrapper=AmpLocalOptimWrapper, dtype='bfloat16')),
}


class Lamb(torch.optim.Adam):
    """No optimizer of torch's own."""


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def trained(rank, count, case, **where):
    """What is left after some steps: tensors, logs, and the optimizer's state."""
    auxiliary, settings = CASES[case]
    model = network(auxiliary=auxiliary)
    if rank:
        # Other weights than process 0's, which are to be taken from there.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)
    if count > 1:
        model = LocalModuleParallel(model, **where)
    trainer = Trainer(model, optimizer=adam, **copy.deepcopy(settings))
    wrapper = trainer.optim_wrapper
    wrapper.initialize_count_status(model, 0, STEPS)
    logs = []
    for step in range(STEPS):
        wrapper.param_groups[0]['lr'] = 0.01 / (step + 1)
        # Batches of different sizes; those of other processes are not looked at.
        reads = count == 1 or model.placement.reads_data
        log = trainer.step(batch(step, 16 + 16 * (step % 2), 4 + step) if reads else None)
        logs.append({**log, **{k: float(v) for k, v in trainer.log.items()}})
    if count == 1:
        states = wrapper.state_dict()['state']
    else:
        own = wrapper.state_dict()['state'].keys()
        with model.placement.whole_model(wrapper):
            states = copy.deepcopy(wrapper.state_dict()['state'])
        assert wrapper.state_dict()['state'].keys() == own
        model = model.module
    return dict(tensors=model.state_dict(), logs=logs, states=states)


def all_cases(rank, count, **where):
    return {case: trained(rank, count, case, **where) for case in CASES}


@pytest.fixture(scope='module')
def alone():
    (outcome,) = run_in_processes(1, all_cases, 1)
    assert isinstance(outcome, dict), outcome
    return outcome


def differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]


@pytest.mark.parametrize('count', [2, 4])
def test_training_is_that_of_one_process(count, alone):
    """Bit for bit: weights, running statistics, the optimizer's state, and process 0's log."""
    outcomes = run_in_processes(count, all_cases, count)
    start = network().state_dict()
    for case in CASES:
        for outcome in outcomes:
            assert isinstance(outcome, dict), outcome
            assert not differing(outcome[case]['tensors'], alone[case]['tensors']), case
        first, expected = outcomes[0][case], alone[case]
        assert first['logs'] == expected['logs'], case
        assert first['states'].keys() == expected['states'].keys(), case
        for i, state in expected['states'].items():
            assert not differing(first['states'][i], state), (case, i)
    # And everything has changed, the statistics in auxiliary networks' heads too.
    assert set(differing(alone['eager']['tensors'], start)) == start.keys()
    assert all('local_4.loss' in log and 'loss' in log for log in alone['eager']['logs'])


# Where modules are, and when they run


def placed(rank, **where):
    model = LocalModuleParallel(network(), **where)
    trainer = Trainer(model)
    for step in range(2):
        trainer.step(batch(step) if model.placement.reads_data else None)
    states = set(trainer.optim_wrapper.optimizer.state)
    owned = {name for name, p in model.module.named_parameters() if p in states}
    model.placement.gather_weights()
    return list(model.placement.modules_here), owned, model.placement.describe()


def test_a_process_holds_the_optimizer_state_of_its_modules_alone():
    first, second = run_in_processes(2, placed, modules_per_process=[1, 4])
    assert (second[0], first[0]) == ([0], [1, 2, 3, 4])
    assert not first[1] & second[1]
    model = network()
    assert first[1] | second[1] == dict(model.named_parameters()).keys()
    assert all(
        name.startswith(('backbone.backbone.', 'backbone.auxiliary.0.')) for name in second[1]
    )
    assert 'fc.weight' in first[1]
    assert first[2] == ('Module parallel: module 1 in process 1, modules 2-5 in process 0')


def test_modules_are_placed_by_what_they_keep():
    (first, *_), (second, *_) = run_in_processes(2, placed)
    model = network().backbone
    costs = [
        sum(model.footprints[i].saved_bytes for i in module) for module in model.module_segments
    ]
    assert second + first == list(range(MODULES))
    assert max(sum(costs[k] for k in first), sum(costs[k] for k in second)) == min(
        max(sum(costs[:k]), sum(costs[k:])) for k in range(1, MODULES)
    )


def filled(rank, count):
    """Each process ends its batch when the process before it is in the next one."""
    model = LocalModuleParallel(network())
    trainer = Trainer(model)
    store = dist.distributed_c10d._get_default_store()
    at_work = []

    def on_forward(*_):
        step = trainer.runner.iter
        at_work.append(step)
        store.set(f'{rank} in {step}', '')
        if rank + 1 < count and step < 2:
            store.wait([f'{rank + 1} in {step + 1}'], timedelta(seconds=60))

    local_backbone = model.module.backbone
    module = local_backbone.module_segments[model.placement.modules_here[0]]
    path = local_backbone.segments[module[0]].submodules[0]
    local_backbone.backbone.get_submodule(path).register_forward_pre_hook(on_forward)
    for step in range(3):
        trainer.step(batch(step) if model.placement.reads_data else None)
    model.placement.gather_weights()
    return at_work


def test_processes_are_at_work_on_different_batches():
    """While process 0 trains on batch 0, process 1 does on batch 1, and process 2 on batch 2."""
    assert run_in_processes(3, filled, 3) == [[0, 1, 2]] * 3


# What would not be the same as in one process


class JointMean(nn.BatchNorm1d):
    """Takes means over processes."""

    def forward(self, x):
        dist.all_reduce(x)
        return x


def refusals(rank):
    """What is said of each model and setting."""

    def message_of(
        model=None, wrapper=LocalOptimWrapper, scope='past', runner=None, where=None, **settings
    ):
        try:
            trainer = Trainer(
                LocalModuleParallel(model or network(), **(where or {})),
                wrapper,
                scope=scope,
                **settings,
            )
            vars(trainer.runner).update(runner or {})
            trainer.hook.before_run(trainer.runner)
        except LocalLearningError as error:
            return str(error)

    memory = dict(type='ClassMemory', num_classes=CLASSES)
    divided = SimpleNamespace(dataloader=DataLoader([0, 1], sampler=DefaultSampler([0, 1])))
    return {
        'fits': message_of(),
        'shared head': message_of(network(auxiliary=dict(type='SLM'))),
        'fewer modules': message_of(network(1)),
        'sizes': message_of(where=dict(modules_per_process=[1, 1])),
        'empty': message_of(where=dict(modules_per_process=[5, 0])),
        'weights of others': message_of(network(auxiliary=dict(type='MAN', host=OWN_HEAD))),
        'observes': message_of(network(auxiliary=dict(type='Observing'))),
        'remembers': message_of(network(auxiliary=dict(OWN_HEAD, bank_use=memory))),
        'means': message_of(network(norm=JointMean)),
        'norm': message_of(network(norm=nn.SyncBatchNorm)),
        'scope': message_of(scope='all'),
        'clipping': message_of(apply='end', clip_grad=dict(max_norm=1.0)),
        'optimizer': message_of(optimizer=lambda p: Lamb(list(p)), apply=None),
        'optimizer, eager': message_of(optimizer=lambda p: Lamb(list(p)), apply='eager'),
        'scaler': message_of(wrapper=AmpLocalOptimWrapper, dtype='float16'),
        'scaled lr': message_of(runner=dict(auto_scale_lr=dict(enable=True))),
        'checkpoints': message_of(runner=dict(hooks=[CheckpointHook()])),
        'sampler': message_of(runner=dict(train_loop=divided)),
    }


@MODELS.register_module()
class Observing(Auxiliary):
    """Learns from what the whole network made of the batch."""

    def loss(self, x, levels, step):
        return dict(loss=x.mean())

    def observe(self, features, step):
        pass


def test_refusals():
    for found in run_in_processes(2, refusals):
        assert isinstance(found, dict), found
        assert found.pop('fits') is None
        # Who sets this says that the optimizer treats each parameter by itself.
        assert found.pop('optimizer, eager') is None
        for name, fix in {
            'shared head': "give modules a head each, auxiliary=dict(type='SLM', head=",
            'fewer modules': '2 processes for num_modules=1: set that to 2 or more',
            'sizes': 'give 2 numbers, one for each process, with the sum 5',
            'empty': 'give numbers of modules from 1',
            'weights of others': "MAN follows the weights of the next module's block",
            'observes': 'Observing learns from what later modules make of a batch',
            'remembers': "bank_use of type 'ClassMemory' learns from the network's deepest",
            'means': 'JointMean (norm) takes means over processes',
            'norm': "set norm_cfg to dict(type='BN')",
            'scope': "set scope='past'",
            'clipping': "set optim_wrapper.apply='eager'",
            'optimizer': 'Lamb may look at all gradients at once',
            'scaler': "set optim_wrapper.dtype='bfloat16'",
            'scaled lr': 'leave --auto-scale-lr out',
            'checkpoints': "set default_hooks.checkpoint.type='AtomicCheckpointHook'",
            'sampler': 'gives each process a part of the images',
        }.items():
            message = found.pop(name)
            assert message is not None and fix in message, (name, message)
            assert '\n' not in message
        assert not found


@MODELS.register_module()
class Borrowing(Auxiliary):
    """Trains the model's own head, and does not say so."""

    def loss(self, x, levels, step):
        return dict(loss=x.mean() + sum(p.sum() for p in step.model.fc.parameters()))


def borrowed(rank):
    model = LocalModuleParallel(network(2, dict(type='Borrowing')))
    trainer = Trainer(model)
    if rank:
        trainer.step(batch())


def test_a_gradient_for_another_processs_module():
    _, error = run_in_processes(2, borrowed)
    assert isinstance(error, LocalLearningError)
    assert 'gets a gradient in process 1, and is trained in process 0' in str(error)


def test_one_process():
    with pytest.raises(LocalLearningError, match='start them with tools/dist_train.sh'):
        LocalModuleParallel(nn.Linear(1, 1))


def test_registered():
    assert MODEL_WRAPPERS.get('LocalModuleParallel') is LocalModuleParallel
