"""Where to cut: the largest module shall be as small as possible."""

from itertools import accumulate
from typing import List, Sequence, Union

from ...arguments import is_integer
from ...errors import LocalLearningError
from .footprint import Footprint
from .segment import Segment


def cut(
    footprints: Sequence[Footprint],
    segments: Sequence[Segment],
    num_modules: Union[int, str, Sequence[Union[int, str]]] = 4,
    reserve: float = 0.0,
) -> List[range]:
    """Choose which segments make up which module.

    Args:
        footprints: From :func:`trace_footprints`, one for each segment.
        segments: The segments themselves.
        num_modules: A number K; ``'blocks'`` for the finest cut (stem and every residual block);
            ``'stages'`` for one module per stage, the stem with the first; or explicit cuts: the
            names of the blocks after which to cut, ``['layer1.2', 'layer2.1', 'layer3.0']``, or
            the number of blocks of each module, ``[4, 4, 4, 4]``, the stem counted as one.
        reserve: What is to be kept free in the last module, for the model's own neck and head, as
            a share of what all segments keep.

    Returns:
        K ranges of segment indices, in order.

    Raises:
        LocalLearningError: ``num_modules`` is not between 1 and the number of trainable segments,
            or explicit cuts don't fit the backbone's blocks.
    """
    if isinstance(num_modules, (list, tuple)):
        return _explicit(num_modules, footprints, segments)
    units = _trainable_units(footprints)
    if num_modules == 'blocks':
        return units
    if num_modules == 'stages':
        return _by_stage(units, segments)
    if not is_integer(num_modules):
        raise LocalLearningError(
            f"num_modules={num_modules!r}: give a number, 'blocks', 'stages', a list of the blocks "
            "to cut after, or 'auto' with a memory_budget"
        )
    if not 1 <= num_modules <= len(units):
        frozen = sum(f.frozen for f in footprints)
        raise LocalLearningError(
            f'num_modules={num_modules}: give 1 (back-propagation) to {len(units)}, the number of '
            f'blocks of this backbone that are trained'
            + (f' ({frozen} of {len(footprints)} are frozen)' if frozen else '')
        )
    costs = [sum(footprints[i].saved_bytes for i in unit) for unit in units]
    # The last segment is in the last module, wherever the cuts are.
    costs[-1] += round(reserve * sum(costs))
    bounds = smallest_maximum(costs, num_modules)
    return [range(units[a].start, units[b - 1].stop) for a, b in bounds]


def _explicit(
    cuts: Sequence[Union[int, str]], footprints: Sequence[Footprint], segments: Sequence[Segment]
) -> List[range]:
    """Modules that end where the user says."""
    names = [segment.name for segment in segments]
    if cuts and all(isinstance(cut, str) for cut in cuts):
        unknown = next((name for name in cuts if name not in names), None)
        if unknown is not None:
            raise LocalLearningError(
                f'num_modules={list(cuts)}: this backbone has no block {unknown!r}, it has '
                f'{", ".join(names)}'
            )
        ends = [names.index(name) + 1 for name in cuts]
        if ends[-1] < len(names):
            ends.append(len(names))
    elif cuts and all(map(is_integer, cuts)):
        ends = list(accumulate(cuts))
        if min(cuts) < 1 or ends[-1] != len(names):
            raise LocalLearningError(
                f'num_modules={list(cuts)}: give each module 1 block or more, {len(names)} in all '
                f'(the stem and the blocks {names[1]} to {names[-1]})'
            )
    else:
        raise LocalLearningError(
            f'num_modules={list(cuts)}: give the names of the blocks to cut after, as in '
            f'{names[:1]}, or the number of blocks of each module, as in {[len(names)]}'
        )
    modules = [range(start, end) for start, end in zip([0, *ends], ends)]
    for module in modules:
        if not module:
            raise LocalLearningError(
                f'num_modules={list(cuts)}: name each block once, in the order of the backbone '
                f'({", ".join(names)})'
            )
        if all(footprints[i].frozen for i in module):
            raise LocalLearningError(
                f'num_modules={list(cuts)}: the module {names[module[0]]} to {names[module[-1]]} '
                'is frozen, there is nothing to train: cut after a block that is trained, or lower '
                'frozen_stages'
            )
    return modules


def _trainable_units(footprints: Sequence[Footprint]) -> List[range]:
    """Join frozen segments to the next trained one: a module with nothing to train has no loss."""
    units, start = [], 0
    for i, footprint in enumerate(footprints):
        if not footprint.frozen:
            units.append(range(start, i + 1))
            start = i + 1
    if start < len(footprints) and units:
        units[-1] = range(units[-1].start, len(footprints))
    if not units:
        raise LocalLearningError(
            'every stage of the backbone is frozen, there is nothing to train locally: lower '
            'frozen_stages, or train the unwrapped backbone'
        )
    return units


def stage_of(segment: Segment) -> int:
    """The stage that a segment counts to: the stem goes with the first.

    Args:
        segment: Any segment.
    """
    return max(segment.stage, 0)


def _by_stage(units: Sequence[range], segments: Sequence[Segment]) -> List[range]:
    modules: List[range] = []
    stages: List[int] = []
    for unit in units:
        stage = stage_of(segments[unit[-1]])
        if stages and stages[-1] == stage:
            modules[-1] = range(modules[-1].start, unit.stop)
        else:
            modules.append(unit)
            stages.append(stage)
    return modules


def smallest_maximum(costs: Sequence[int], num_modules: int) -> List[tuple]:
    """Cut a sequence in parts so that the largest sum is smallest, then the squares' sum.

    Exact, by dynamic programming over (parts, position); sequences have at most some dozens of
    segments. The sum of squares keeps the parts even where the maximum leaves a choice.

    Args:
        costs: Of the members, in order.
        num_modules: Parts, of one member at least.

    Returns:
        Start and end of each part.
    """
    n = len(costs)
    prefix = [0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best = {(0, 0): ((0, 0), [])}
    for parts in range(1, num_modules + 1):
        for end in range(parts, n + 1):
            options = []
            for start in range(parts - 1, end):
                if (parts - 1, start) not in best:
                    continue
                (largest, squares), bounds = best[parts - 1, start]
                size = prefix[end] - prefix[start]
                options.append(
                    ((max(largest, size), squares + size * size), bounds + [(start, end)])
                )
            best[parts, end] = min(options)
    return best[num_modules, n][1]
