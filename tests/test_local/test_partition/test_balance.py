"""Where to cut, against all ways to cut."""

import random
from itertools import combinations

import pytest

from fba_mm import LocalLearningError
from fba_mm.local.partition import Footprint, Segment, cut


def footprints(costs, frozen=()):
    return [
        Footprint(str(i), channels=8, stride=4, saved_bytes=cost, frozen=i in frozen)
        for i, cost in enumerate(costs)
    ]


def segments(stages):
    return [Segment(str(i), run=None, submodules=(), stage=stage) for i, stage in enumerate(stages)]


def all_cuts(n, num_modules):
    for inner in combinations(range(1, n), num_modules - 1):
        bounds = (0, *inner, n)
        yield [range(a, b) for a, b in zip(bounds, bounds[1:])]


@pytest.mark.parametrize('seed', range(20))
def test_the_largest_module_is_as_small_as_it_can_be(seed):
    chance = random.Random(seed)
    n = chance.randint(1, 9)
    costs = [chance.choice([chance.randint(0, 9), chance.randint(0, 1000)]) for _ in range(n)]
    for num_modules in range(1, n + 1):

        def sizes(modules):
            return sorted((sum(costs[i] for i in module) for module in modules), reverse=True)

        modules = cut(footprints(costs), segments([0] * n), num_modules)
        assert len(modules) == num_modules
        assert [i for module in modules for i in module] == list(range(n))
        best = min(
            all_cuts(n, num_modules), key=lambda m: (sizes(m)[0], sum(s * s for s in sizes(m)))
        )
        assert sizes(modules)[0] == sizes(best)[0]
        # Where the largest leaves a choice, the others are even.
        assert sum(s * s for s in sizes(modules)) == sum(s * s for s in sizes(best))


def test_blocks_and_stages():
    stages = segments([-1, 0, 0, 1, 2, 2])
    costs = footprints([5, 4, 3, 2, 1, 1])
    assert cut(costs, stages, 'blocks') == [range(i, i + 1) for i in range(6)]
    assert cut(costs, stages, 'stages') == [range(3), range(3, 4), range(4, 6)]


@pytest.mark.parametrize(
    'frozen, units',
    [
        ({0}, [range(2), range(2, 3), range(3, 4), range(4, 5)]),
        ({0, 1, 2}, [range(4), range(4, 5)]),
        ({1, 3}, [range(1), range(1, 3), range(3, 5)]),
        ({3, 4}, [range(1), range(1, 2), range(2, 5)]),
    ],
)
def test_frozen_segments_join_what_is_trained(frozen, units):
    costs, stages = footprints([7, 1, 1, 1, 1], frozen), segments([-1, 0, 1, 2, 3])
    assert cut(costs, stages, 'blocks') == units
    assert cut(costs, stages, len(units)) == units
    for num_modules in range(1, len(units) + 1):
        for module in cut(costs, stages, num_modules):
            assert not all(i in frozen for i in module)
    with pytest.raises(
        LocalLearningError, match=f'to {len(units)}, .*{len(frozen)} of 5 are frozen'
    ):
        cut(costs, stages, len(units) + 1)


def test_everything_frozen():
    with pytest.raises(LocalLearningError, match='every stage .* is frozen.*lower frozen_stages'):
        cut(footprints([1, 1], {0, 1}), segments([-1, 0]), 1)


@pytest.mark.parametrize('num_modules', [0, -3, 4, True, False, 2.0, '2', None, 'block'])
def test_wrong_numbers(num_modules):
    with pytest.raises(LocalLearningError, match=f'num_modules={num_modules!r}: give'):
        cut(footprints([1, 1, 1]), segments([-1, 0, 1]), num_modules)


def test_the_last_module_keeps_room():
    costs = [4, 4, 4, 4]
    cut_at = {
        reserve: [len(m) for m in cut(footprints(costs), segments([0] * 4), 2, reserve)]
        for reserve in (0, 0.25, 0.75, 9)
    }
    # With the room that is kept: 8 + 8, 8 + 12 (rather than 12 + 8: alike, but the first fits),
    # 12 + 16, 12 + 148.
    assert cut_at[0] == [2, 2]
    assert cut_at[0.75] == cut_at[9] == [3, 1]
    assert max(sum(costs[:n]) for n in (cut_at[0.25][0],)) <= 12
    assert cut(footprints(costs), segments([0] * 4), 'blocks', 9) == cut(
        footprints(costs), segments([0] * 4), 'blocks'
    )


NAMES = ['stem', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1']


def named_segments():
    return [Segment(name, run=None, submodules=(), stage=0) for name in NAMES]


@pytest.mark.parametrize(
    'cuts, ends',
    [
        (['layer1.0', 'layer2.0'], [2, 4, 5]),
        (['layer1.0', 'layer2.1'], [2, 5]),  # The last block ends the last module anyway.
        (('stem',), [1, 5]),
        ([2, 1, 2], [2, 3, 5]),
        ([1] * 5, [1, 2, 3, 4, 5]),
        ([5], [5]),
    ],
)
def test_explicit_cuts(cuts, ends):
    modules = cut(footprints([9, 1, 1, 1, 1]), named_segments(), cuts)
    assert modules == [range(start, end) for start, end in zip([0] + ends, ends)]


@pytest.mark.parametrize(
    'cuts, frozen, message',
    [
        (['layer1.0', 'layer3.0'], (), "no block 'layer3.0', it has stem, layer1.0"),
        (['layer2.0', 'layer1.0'], (), 'name each block once, in the order'),
        (['layer1.0', 'layer1.0'], (), 'name each block once'),
        ([2, 2], (), '5 in all .the stem and the blocks layer1.0 to layer2.1'),
        ([5, 0], (), '1 block or more'),
        ([], (), 'give the names of the blocks'),
        (['stem', 4], (), 'give the names of the blocks'),
        ([True, 4], (), 'give the names of the blocks'),
        (['layer1.0'], (0, 1), 'the module stem to layer1.0 is frozen'),
    ],
)
def test_explicit_cuts_that_are_refused(cuts, frozen, message):
    with pytest.raises(LocalLearningError, match=message):
        cut(footprints([1] * 5, frozen), named_segments(), cuts)
