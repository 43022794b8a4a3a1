"""Which way to train a budget asks for, and whether it keeps within it."""

import gc
import re
from functools import partial
from unittest import mock

import pytest
from mmdet.models.backbones import HourglassNet
from mmengine.config import Config
from mmengine.registry import MODELS

from fba_mm import localize
from fba_mm.analysis import (
    MemoryPrediction,
    TrainingStep,
    measure_step,
    predict_memory,
    resident_bytes,
)
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.errors import LocalLearningError
from fba_mm.localize import sliced
from fba_mm.planning import plan_training
from fba_mm.planning.frontier_plot import draw_frontier, frontier
from fba_mm.planning.plan import Search
from fba_mm.planning.ways import Series, Way, ways_to_train
from fba_mm.tasks import backbone_key, task_of

from .. import segmentation
from ..conftest import needs
from ..test_analysis.small_configs import classifier, detector, super_resolution

SHAPE = (2, 3, 64, 64)
MIB = 2**20


def predicted(cfg, shape):
    """What a large model might take: modules save memory and cost time."""
    backbone = cfg.model.backbone
    modules = backbone.get('num_modules', 1)
    modules = 8 if modules == 'blocks' else modules
    shared = modules > 1 and not isinstance(backbone.auxiliary.get('head'), dict)
    peak = 800 // modules + 100 * shared - 200 * bool(backbone.get('with_cp'))
    flops = 100 + (60 if shared else 2) * (modules - 1) + 20 * bool(backbone.get('with_cp'))
    return MemoryPrediction(None, 80 * MIB, 20 * MIB, peak * MIB, flops=flops)


def some_ways(cfg, images):
    """As shipped, checkpointing, and local learning with two kinds of heads."""
    found = ways_to_train(cfg)
    kept = [
        one for one in found if isinstance(one, Way) and one.name in ('as shipped', 'with_cp=True')
    ]
    series = [one for one in found if isinstance(one, Series) and not one.exact]
    return kept + [one for one in series if 'recomputed' not in one.make(2).name]


@pytest.fixture
def large():
    with mock.patch('fba_mm.planning.plan.predict_memory', predicted), mock.patch(
        'fba_mm.planning.plan.ways_to_train', some_ways
    ):
        yield


def segmentor():
    return Config(
        dict(
            default_scope='mmseg',
            model=segmentation.segmentor(None),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        )
    )


def chosen(budget):
    plan = plan_training(detector(), budget, SHAPE)
    return plan, plan.chosen and plan.chosen.way.name


def test_all_ways(large):
    plan, name = chosen(None)
    first, *others = plan.tried
    assert name == first.way.name == 'as shipped' and first.time == 1
    assert [one.way.name for one in others] == [
        'with_cp=True',
        *(
            f'local, K={k}, {heads}'
            for k, heads in [
                (2, "the model's head"),
                (2, 'light heads'),
                (4, "the model's head"),
                (4, 'light heads'),
                (8, 'light heads'),
                ('blocks', 'light heads'),
            ]
        ),
    ]
    exact, local = (
        frontier([one for one in plan.points() if one.exact == kind]) for kind in (True, False)
    )
    assert [one.name for one in exact] == ['as shipped', 'with_cp=True']
    assert [one.time for one in local] == [1.02, 1.06, 1.14]
    assert plan.least.memory.total == 200 * MIB


@pytest.mark.parametrize(
    'budget, name, words',
    [
        ('900MiB', 'as shipped', 'this is plain back-propagation, nothing is needed'),
        ('700MiB', 'with_cp=True', '700 MiB of 700 MiB, 1.20 times.*fastest exact way that fits'),
        ('699MiB', 'local, K=2, light heads', 'no exact way fits'),
        (
            '350MiB',
            'local, K=4, light heads',
            'Training: local, K=4, light heads, 300 MiB of 350 MiB',
        ),
        ('0.25GB', 'local, K=6, light heads', '233 MiB of 238 MiB'),
    ],
)
def test_the_way_that_a_budget_asks_for(budget, name, words, large):
    plan, found = chosen(budget)
    assert found == name
    assert re.search(words, plan.summary())
    assert (
        plan.chosen.way.configure(detector()).to_dict()
        == {
            'as shipped': detector(),
            'with_cp=True': sliced(detector(with_cp=True)),
            'local, K=2, light heads': localize(detector(), 2),
            'local, K=4, light heads': localize(detector(), 4),
            'local, K=6, light heads': localize(detector(), 6),
        }[name].to_dict()
    )
    if name == 'as shipped':
        assert len(plan.tried) == 1


def test_none_fits(large):
    plan, found = chosen('150MiB')
    assert found is None
    assert re.match(
        r'a budget of 150 MiB is less than any way to train takes on batches of 2×3×64×64: '
        r'the least is 200 MiB, by "local, K=8, light heads" \(100 MiB of it '
        'parameters and optimizer state\\): give that much',
        plan.refusal(),
    )
    plan, found = chosen('90MiB')
    assert found is None
    assert 'less than parameters and optimizer state alone, 100 MiB' in plan.refusal()


@pytest.mark.slow
@pytest.mark.parametrize(
    'make, shape, name',
    [
        (classifier, (8, 3, 64, 64), 'checkpointing, blocks'),
        (partial(super_resolution, num_blocks=16), (2, 3, 48, 48), 'local, K=2, light heads'),
    ],
)
def test_what_is_chosen_keeps_within_the_budget(make, shape, name):
    """By the tensors of a step that is really made."""
    cfg = make()

    def ways(cfg, images):
        first, *others = ways_to_train(cfg)
        made = [one.make(2) if isinstance(one, Series) else one for one in others]
        return [first, next(one for one in made if one.name == name)]

    stock = predict_memory(cfg, shape)
    with mock.patch('fba_mm.planning.plan.ways_to_train', ways):
        found = plan_training(cfg, stock.total - 1, shape).chosen
    assert found.way.name == name and found.memory.total < stock.total
    step = TrainingStep(found.way.configure(cfg))
    data = synthetic_batch(step.model, shape)
    step(data)
    gc.collect()
    sizes = resident_bytes(step.model, step.optim_wrapper.optimizer)
    taken = (
        sizes['parameters'] + sizes['optimizer_state'] + measure_step(lambda: step(data)).peak_bytes
    )
    assert taken == pytest.approx(found.memory.total, rel=0.001)


@pytest.mark.slow
def test_the_copy_of_an_ema_hook_counts():
    cfg = classifier()
    plain = predict_memory(cfg, (2, 3, 32, 32))
    cfg.custom_hooks = [dict(type='mmdet.EMAHook')]
    averaged = predict_memory(cfg, (2, 3, 32, 32))
    assert averaged.total - plain.total == plain.parameters > 0


def test_a_backbone_that_cannot_be_cut():
    """What needs no cuts can be planned all the same."""

    class Uncut(HourglassNet):
        def forward(self, x):
            return tuple(super().forward(x)[-1:])

    MODELS.register_module(name='UncutHourglass', module=Uncut, force=True)
    cfg = classifier()
    cfg.model.backbone = dict(
        type='UncutHourglass',
        downsample_times=2,
        num_stacks=1,
        stage_channels=(8, 8, 8),
        stage_blocks=(1, 1, 1),
        feat_channel=8,
    )
    cfg.model.head.in_channels = 8
    plan = plan_training(cfg, shape=(2, 3, 64, 64))
    assert [one.way.name for one in plan.tried] == ['as shipped']
    assert re.match(
        'checkpointing in spans, local learning: backbone Uncut cannot be cut', plan.skipped[0]
    )


def test_configs_without_a_plan():
    with pytest.raises(LocalLearningError, match='a plan starts from the stock config'):
        plan_training(localize(detector()), '1GB', SHAPE)
    with pytest.raises(LocalLearningError, match="give it with a unit, as '8GB'"):
        plan_training(detector(), '8', SHAPE)
    cfg = detector()
    cfg.model.bbox_head.type = 'NoSuchHead'
    with pytest.raises(LocalLearningError, match='NoSuchHead'):
        plan_training(cfg, '1GB', SHAPE)


@pytest.mark.parametrize(
    'make, task',
    [
        (detector, 'detection'),
        pytest.param(classifier, 'classification', marks=needs('mmpretrain')),
        pytest.param(segmentor, 'segmentation', marks=needs('mmseg')),
        pytest.param(super_resolution, 'super-resolution', marks=needs('mmagic')),
    ],
)
def test_tasks(make, task):
    cfg = make()
    assert task_of(cfg).name == task
    first, *others = ways_to_train(cfg)
    assert first.name == 'as shipped'
    assert {'checkpointing, 3 spans', 'checkpointing, blocks'} <= {
        one.name for one in others if isinstance(one, Way)
    }
    assert all(one.exact for one in others if isinstance(one, Way))
    series = [one for one in others if isinstance(one, Series) and not one.exact]
    assert series and all(one.numbers[-1] == 'blocks' for one in series)
    for one in series:
        way = one.make(2)
        assert not way.exact and way.configure(cfg).model[backbone_key(cfg.model)].num_modules == 2
        assert way.how.startswith('--local 2 --auxiliary ') or 'image by image' in way.name
        assert way.accuracy


@pytest.mark.parametrize(
    'make, size, names',
    [
        (classifier, 64, True),
        (super_resolution, 16, True),
        (partial(classifier, 'BN'), 64, False),
        (detector, 64, False),
    ],
)
def test_accumulation_where_it_is_exact(make, size, names):
    """And why it isn't, where it isn't."""
    with mock.patch('fba_mm.planning.plan.ways_to_train', accumulation):
        plan = plan_training(make(), shape=(4, 3, size, size))
    found = {one.way.name: one for one in plan.tried}
    accumulating = [name for name in found if name.startswith('accumulation')]
    if not names:
        assert not accumulating
        assert re.search(
            'accumulation, 2 images at a time: .*normalization is trained', plan.skipped[0]
        )
        return
    assert accumulating == ['accumulation, 2 images at a time', 'accumulation, 1 image at a time']
    two, one = (found[name] for name in accumulating)
    assert one.memory.peak < two.memory.peak < found['as shipped'].memory.peak
    assert one.way.exact and one.memory.flops == found['as shipped'].memory.flops


def accumulation(cfg, images):
    first, *others = ways_to_train(cfg, images)
    return [first, next(one for one in others if isinstance(one, Series) and one.exact)]


def test_the_picture(large, tmp_path):
    plan, _ = chosen('300MiB')
    points = plan.points()
    figure = draw_frontier(points, tmp_path / 'a/frontier.png', 'A title', budget=plan.budget)
    assert (tmp_path / 'a/frontier.png').read_bytes().startswith(b'\x89PNG')
    (axes,) = figure.axes
    (key,) = figure.legends
    # The way that has the number, by number and by place.
    named = {
        handle.get_marker().strip('$'): re.sub(r'\s+', ' ', text.get_text())
        for handle, text in zip(key.legend_handles, key.get_texts())
    }
    places = {text.get_text(): text.xy for text in axes.texts}
    kinds = ([one for one in points if one.exact == exact] for exact in (True, False))
    best = {points[0], *(one for kind in kinds for one in frontier(kind))}
    assert len(places) == len(best)
    left, right = axes.get_xlim()
    for one in best:
        (number,) = (key for key, name in named.items() if name.startswith(f'{one.name}: '))
        assert places[number] == (one.time, one.nbytes / 2**20) and left < one.time < right


@pytest.mark.parametrize(
    'takes, budget, found',
    [
        ({2: 5, 3: 4, 4: 6, 6: 7, 8: 8, 'blocks': 9}, 4, 3),  # rises again: modules have heads
        ({2: 9, 3: 9, 4: 9, 6: 4, 8: 5, 'blocks': 9}, 5, 6),
        ({2: 9, 3: 9, 4: 9, 6: 6, 8: 5, 'blocks': 9}, 5, 8),
        ({2: 9, 3: 9, 4: 8, 6: 8, 8: 7, 'blocks': 6}, 6, 'blocks'),
        ({2: 9, 3: 9, 4: 8, 6: 8, 8: 7, 'blocks': 6}, 5, None),
        ({2: 9, 3: 9, 4: 8, 6: 8, 8: 7, 'blocks': None}, 5, None),  # can't be simulated
    ],
)
def test_memory_that_does_not_fall_with_the_number(takes, budget, found):
    numbers = list(takes)

    def predict(number, shape):
        if takes[number] is None:
            raise LocalLearningError('these modules cannot be simulated')
        return MemoryPrediction(None, 0, 0, takes[number], flops=1 + numbers.index(number))

    series = Series(lambda k: Way(f'K={k}', False, '', lambda cfg: k), numbers)
    with mock.patch('fba_mm.planning.plan.predict_memory', predict):
        planned = Search(detector(), SHAPE, budget).least_that_fits(series)
    assert (planned and planned.way.name) == (found and f'K={found}')


@pytest.mark.parametrize(
    'budget, exact, tried',
    [
        (6, True, ['accumulation']),
        (4, True, ['accumulation', 'accumulation, head', 'images']),
        (3, True, ['accumulation', 'accumulation, head', 'images', 'images, head']),
        (4, False, ['images', 'images, head']),  # accumulation is not exact
    ],
)
def test_what_would_not_be_taken_is_not_simulated(budget, exact, tried):
    takes = {'shipped': 9, 'accumulation': 6, 'accumulation, head': 4, 'images': 8}

    def predict(name, shape):
        if name.startswith('accumulation') and not exact:
            raise LocalLearningError('no')
        return MemoryPrediction(None, 0, 0, takes.get(name, 5), flops=1)

    def made(name):
        kind, head = name.split(',')[0], name.endswith('head')
        return Way(name, True, '', lambda cfg: name, kind=kind, recomputes_head=head)

    series = Series(lambda parts: made('accumulation'), [2], True, 'accumulation')
    others = [made(name) for name in ('accumulation, head', 'images', 'images, head')]
    ways = [made('shipped'), series, *others]
    with mock.patch('fba_mm.planning.plan.predict_memory', predict), mock.patch(
        'fba_mm.planning.plan.ways_to_train', lambda cfg, images: ways
    ):
        plan = Search(detector(), SHAPE, budget).plan()
    assert {one.way.name for one in plan.tried} == {'shipped', *tried}
    assert len(plan.skipped) == (not exact)
