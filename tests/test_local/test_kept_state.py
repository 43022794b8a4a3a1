"""What a network keeps from pass to pass, and passes that leave no trace of it."""

import copy
from collections import Counter, OrderedDict, deque, namedtuple

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from fba_mm import LocalLearningError
from fba_mm.local import LocalStep
from fba_mm.local.kept_state import unchanged_state

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer

Range = namedtuple('Range', 'low high')


def test_norms_use_the_batch_and_track_where_they_are_told():
    inner, outer = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    fixed, stateless = (
        torch.nn.BatchNorm2d(3).eval(),
        torch.nn.BatchNorm2d(3, track_running_stats=False),
    )
    model = torch.nn.ModuleList([inner, outer, fixed, stateless])
    x = torch.rand(4, 3, 5, 5) * 3
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    try:
        with unchanged_state(model, skip=inner):
            torch.testing.assert_close(outer(x), expected)
            torch.testing.assert_close(inner(x), expected)
            torch.testing.assert_close(fixed(x), x, rtol=1e-4, atol=1e-4)
            raise KeyError
    except KeyError:
        pass
    assert [norm.track_running_stats for norm in model] == [True, True, True, False]
    assert [int(norm.num_batches_tracked) for norm in (inner, outer, fixed)] == [1, 0, 0]
    assert outer.running_mean.eq(0).all() and inner.running_mean.ne(0).all()


class Assigner:
    """Neither a module nor a config, as mmdet's assigners."""

    def __init__(self):
        self.threshold = 0.5
        self.seen = [torch.zeros(2)]


class Keeper(nn.Module):
    """State of every form."""

    def __init__(self):
        super().__init__()
        self.register_buffer('counts', torch.zeros(3))
        self.register_buffer('queue', torch.zeros(4))
        self.fc = nn.Linear(3, 3)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)]
        )
        self.plain = torch.zeros(2)
        self.fresh = CountingHead(None, seen=False)
        self.array = np.zeros(2)
        self.iteration = 0
        self.history = [[1.0], deque([1, 2], maxlen=2)]
        self.by_class = dict(a=[0], b=torch.zeros(1))
        self.ordered = OrderedDict(a=1, b=2)
        self.counter, self.names = Counter(a=1), {'a'}
        self.pair = (torch.zeros(1), [0])
        self.range = Range(torch.zeros(1), 1)
        self.cfg = ConfigDict(train=dict(pos=0.5), steps=[dict(at=1)])
        self.assigner, self.loss_bbox = Assigner(), nn.SmoothL1Loss()
        self.outside = [nn.BatchNorm1d(3)]

    def state(self):
        return (
            copy.deepcopy({k: v for k, v in vars(self).items() if k[0] != '_'}),
            {k: v.clone() for k, v in self.state_dict().items()},
            [v.clone() for v in self.outside[0].state_dict().values()],
            self.loss_bbox.beta,
        )

    def forward(self, x):
        self.counts += 1
        self.counts.data[0] = 7.0  # Which torch does not count as a change.
        self.queue = self.queue + 1
        x = self.outside[0](self.norms[0](self.fc(x)))
        self.norms[1](x.T[None])
        self.plain.add_(1)
        self.array += 1
        self.iteration += 1
        self.new = 1
        self.fresh.register_buffer('late', torch.zeros(1))
        self.fresh.layer = nn.Identity()
        self.history[0].append(2.0)
        self.history[1].append(3)
        self.by_class['a'][0] += 1
        self.by_class['b'] += 1
        self.by_class['c'] = 0
        self.ordered.pop('a')
        self.counter['b'] += 1
        self.names.add('b')
        self.pair[0].add_(1)
        self.pair[1].append(1)
        self.range.low.add_(1)
        self.cfg.train.pos = 0.7
        self.cfg.steps[0].at = 2
        self.assigner.threshold = 0.6
        self.assigner.seen[0] += 1
        self.assigner.seen.append(x.detach())
        self.loss_bbox = nn.SmoothL1Loss(beta=self.loss_bbox.beta / 2)
        # Saved for the backward pass, after it has changed.
        return (x * self.plain.sum() * self.counts).pow(2).sum()


def same(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return bool((a == b).all())
    return (
        vars(a) == vars(b)
        if isinstance(a, nn.SmoothL1Loss)
        else a == b
        or (isinstance(a, Assigner) and same(vars(a), vars(b)))
        or isinstance(a, nn.Module)
    )


@pytest.mark.parametrize('failing', [False, True])
def test_every_form_of_state_is_put_back(failing):
    torch.manual_seed(0)
    model, x = Keeper().train(), torch.rand(5, 3)
    twin = copy.deepcopy(model)
    expected = twin(x)
    expected.backward()
    before, held = model.state(), {k: id(v) for k, v in vars(model).items()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    try:
        with unchanged_state(model) as changed:
            loss = model(x)
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert same(before[0], model.state()[0]) and same(before[1:], model.state()[1:])
    assert {k: id(v) for k, v in vars(model).items()} == held
    assert not model.fresh._buffers and not model.fresh._modules
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    # The pass itself is as ever, with the state that the model has, and its gradients.
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(model.fc.weight.grad, twin.fc.weight.grad)
    assert {
        'counts',
        'queue',
        'iteration',
        'new',
        'history.0',
        'by_class.c',
        'assigner.threshold',
        'cfg.train.pos',
        'loss_bbox',
    } <= set(changed)
    assert not any(name.startswith(('fc', 'norms.0')) for name in changed)
    # And so is the next one, which counts.
    model(x)
    assert same(twin.state()[0], model.state()[0]) and same(twin.state()[1:3], model.state()[1:3])


def test_what_is_left_out_and_what_does_not_change():
    model = nn.ModuleList([Keeper(), nn.Linear(3, 3)])
    with unchanged_state(model, skip=model[0]) as changed:
        model[1](model[0].fc(torch.rand(2, 3)))
        model[0].iteration = 5
    assert model[0].iteration == 5 and changed == []


def test_parameters_that_a_pass_moves():
    """A momentum encoder in a head would move once for each module."""
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    changed = pytest.raises(LocalLearningError, match='0.weight is changed in the forward pass')
    with changed, unchanged_state(model):
        model[0].weight.mul_(0.9)


@pytest.mark.parametrize(
    'loss, args',
    [
        (dict(type='SeesawLoss', num_classes=3), lambda: (torch.rand(4, 5), torch.arange(4) % 3)),
        (dict(type='EQLV2Loss', num_classes=3), lambda: (torch.rand(4, 4), torch.arange(4) % 3)),
        (
            dict(type='GHMC', momentum=0.7),
            lambda: (torch.rand(4, 3), torch.eye(4)[:, :3], torch.ones(4, 3)),
        ),
        (
            dict(type='GHMR', momentum=0.7),
            lambda: (torch.rand(4, 4), torch.rand(4, 4), torch.ones(4, 4)),
        ),
        (
            dict(type='mmseg.EMAModule', channels=4, num_bases=2, num_stages=1, momentum=0.1),
            lambda: (torch.rand(2, 4, 3, 3),),
        ),
        (
            dict(type='DropBlock', drop_prob=0.1, block_size=1, warmup_iters=5),
            lambda: (torch.rand(1, 2, 4, 4),),
        ),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_losses_and_layers_that_count(loss, args):
    if loss['type'].startswith('mmseg'):
        pytest.importorskip('mmseg')
        from mmseg.models.decode_heads.ema_head import EMAModule

        module = EMAModule(**{k: v for k, v in loss.items() if k != 'type'})
    else:
        module = MODELS.build(loss)
    module.train()
    if hasattr(module, 'bases'):
        module.bases = torch.rand_like(module.bases)
    args = args()

    def state():
        values = {**vars(module), **module._buffers}
        return copy.deepcopy(
            {
                name: value
                for name, value in values.items()
                if isinstance(value, (bool, int, float, list, torch.Tensor))
            }
        )

    before = state()
    with unchanged_state(module):
        module(*args)
    assert same(before, state())
    module(*args)
    assert not same(before, state())


class CountingHead(nn.Module):
    """Put on a head's loss: counts passes in a buffer and in an attribute."""

    def __init__(self, loss, seen=True):
        super().__init__()
        self.loss = loss
        if seen:
            self.register_buffer('seen', torch.zeros(()))
        self.passes = 0

    def forward(self, *args, **kwargs):
        self.seen += 1
        self.passes += 1
        return self.loss(*args, **kwargs)


LEVELS = 5


@pytest.mark.parametrize('own', [False, True])
def test_the_models_own_pass_alone_counts(own):
    """What a shared head counts is what it counts in stock training; own heads count their own."""
    model = build(retinanet(auxiliary=own_head()) if own else retinanet())
    heads = [model] + [auxiliary.head for auxiliary in model.backbone.auxiliary if own]
    for head in heads:
        head.bbox_head.loss_cls = CountingHead(head.bbox_head.loss_cls)
    trainer = Trainer(model)
    for iteration in range(1, 3):
        trainer.step(batch())
        for head in heads:
            loss = head.bbox_head.loss_cls
            assert loss.passes == int(loss.seen) == iteration * LEVELS


@pytest.mark.parametrize('asked, slices', [(True, 2), (False, 1)])
def test_heads_of_users_see_the_whole_batch_unless_they_ask(asked, slices):
    from mmdet.models import RetinaHead

    class OwnHead(RetinaHead):
        pass

    model = build(retinanet(num_modules=None))
    step = LocalStep(
        model,
        model.backbone,
        torch.rand(2, 3, 64, 64),
        [0, 1],
        None,
        None,
        head_batch_size=1,
        asked_for_slices=asked,
    )
    assert len(step.slices(model, model.backbone)) == 2
    model.bbox_head.__class__ = OwnHead
    assert len(step.slices(model, model.backbone)) == slices


def test_a_head_that_counts_is_not_fed_in_slices():
    model = build(dict(retinanet(), backbone=dict(retinanet()['backbone'], head_batch_size=1)))
    trainer = Trainer(model)
    trainer.step(batch())
    model.bbox_head.loss_cls.seen = []
    original = model.bbox_head.loss_cls.forward
    model.bbox_head.loss_cls.forward = lambda *args, **kwargs: (
        model.bbox_head.loss_cls.seen.append(1),
        original(*args, **kwargs),
    )[1]
    with pytest.raises(
        LocalLearningError,
        match=r'keeps bbox_head.loss_cls.seen from one batch .*head_batch_size out',
    ):
        trainer.step(batch())
