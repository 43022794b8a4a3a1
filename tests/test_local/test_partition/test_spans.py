"""Which segments are recomputed together."""

from itertools import combinations

import pytest

from fba_mm.local.partition import Footprint, Segment, recompute_spans

SAVED = [0, 0, 9, 4, 7, 1, 8, 3, 5, 2]
OUTPUTS = [6, 5, 4, 1, 3, 2, 2, 3, 1, 1]


def backbone(levels=(), frozen=2):
    footprints = [
        Footprint(str(i), 8, 4, saved, frozen=i < frozen, output_bytes=out)
        for i, (saved, out) in enumerate(zip(SAVED, OUTPUTS))
    ]
    segments = [
        Segment(
            f'layer{i}', None, (), stage=i // 4 - 1, level=levels.index(i) if i in levels else None
        )
        for i in range(len(SAVED))
    ]
    return footprints, segments


def figure(bounds, levels=()):
    """Inputs kept, what the network returns aside, and the largest span."""
    return sum(OUTPUTS[b - 1] for b in bounds[1:-1] if b - 1 not in levels) + max(
        sum(SAVED[a:b]) for a, b in zip(bounds, bounds[1:])
    )


@pytest.mark.parametrize('levels', [(), (3, 5)])
@pytest.mark.parametrize('count', range(1, 9))
def test_the_smallest_of_all_ways(count, levels):
    frozen, *spans = recompute_spans(*backbone(levels), [range(10)], count)[0]
    assert frozen == range(2) and len(spans) == count
    best = min(figure((2, *cuts, 10), levels) for cuts in combinations(range(3, 10), count - 1))
    assert figure((2, *(span.stop for span in spans)), levels) == best
    assert [span.start for span in spans] == [2, *(span.stop for span in spans[:-1])]


def test_modules_have_spans_of_their_own():
    modules = [range(4), range(4, 10)]
    first, second = recompute_spans(*backbone(), modules, 3)
    assert first == [range(2), range(2, 3), range(3, 4)]
    assert second[0].start == 4 and second[-1].stop == 10 and len(second) == 3
    assert recompute_spans(*backbone(), modules, 'blocks') == [
        [range(i, i + 1) for i in module] for module in modules
    ]
    assert recompute_spans(*backbone(), modules, 'stages') == [
        [range(4)],
        [range(4, 8), range(8, 10)],
    ]
    assert recompute_spans(*backbone(), modules, ['layer0', 'layer3', 'layer8']) == [
        [range(1), range(1, 4)],
        [range(4, 9), range(9, 10)],
    ]


def test_a_frozen_backbone():
    footprints, segments = backbone(frozen=10)
    assert recompute_spans(footprints, segments, [range(10)], 1) == [[range(10)]]
