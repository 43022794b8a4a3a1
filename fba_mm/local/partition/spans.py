"""Which segments are recomputed together in the backward pass."""

from itertools import groupby
from typing import Dict, List, Sequence, Tuple, Union

from ...arguments import is_integer
from ...errors import LocalLearningError
from .balance import stage_of
from .footprint import Footprint
from .segment import Segment

Recompute = Union[int, str, Sequence[str]]


def recompute_spans(
    footprints: Sequence[Footprint],
    segments: Sequence[Segment],
    modules: Sequence[range],
    recompute: Recompute,
) -> List[List[range]]:
    """Divide each module into spans: of each only the input is kept, the rest is made again.

    A number is met by those spans whose inputs, kept for the whole backward pass, and the largest
    span, recomputed at its turn, take the least memory together. What the backbone returns is kept
    anyway, and costs nothing as the input of a span. Frozen segments at the start keep nothing and
    stay outside the count.

    Args:
        footprints: From :func:`trace_footprints`, one for each segment.
        segments: The segments themselves.
        modules: The segments of each module, in order.
        recompute: A number of spans for each module; ``'stages'`` for one per stage, the stem with
            the first; ``'blocks'`` for one per segment; or names of segments that end a span.

    Returns:
        The spans of each module, as ranges of segment indices.

    Raises:
        LocalLearningError: ``recompute`` is none of these, a number beyond the segments of the
            largest module, or a name of no segment.

    Example:
        >>> whole = LocalBackbone(dict(type='mmdet.ResNet', depth=50), num_modules=2)
        >>> recompute_spans(whole.footprints, whole.segments, [range(17)], 'stages')
        [[range(0, 4), range(4, 8), range(8, 14), range(14, 17)]]
    """
    if recompute == 'blocks':
        return [[range(i, i + 1) for i in module] for module in modules]
    if recompute == 'stages':
        return [
            [range(members[0], members[-1] + 1) for members in _by_stage(module, segments)]
            for module in modules
        ]
    if isinstance(recompute, (list, tuple)):
        return _after_names(segments, modules, recompute)
    if not is_integer(recompute):
        raise LocalLearningError(
            f"recompute={recompute!r}: give a number of spans, 'stages', 'blocks', or a list of "
            f'the segments that end one, such as {[segments[0].name]}'
        )
    start = next((i for i, f in enumerate(footprints) if not f.frozen), 0)
    most = max(
        len(module) - len(range(module.start, min(start, module.stop))) for module in modules
    )
    if not 1 <= recompute <= most:
        where = 'this backbone' if len(modules) == 1 else 'its largest module'
        raise LocalLearningError(
            f'recompute={recompute}: give 1 to {most}, the number of blocks of {where} that are '
            "trained, 'stages' or 'blocks'"
        )
    found = []
    for module in modules:
        frozen = range(module.start, max(module.start, min(start, module.stop)))
        trained = range(frozen.stop, module.stop)
        spans = _smallest(footprints, segments, trained, min(recompute, len(trained)))
        found.append(([frozen] if frozen else []) + spans)
    return found


def _by_stage(module: range, segments: Sequence[Segment]) -> List[List[int]]:
    return [list(members) for _, members in groupby(module, lambda i: stage_of(segments[i]))]


def _after_names(
    segments: Sequence[Segment], modules: Sequence[range], names: Sequence[str]
) -> List[List[range]]:
    known = [segment.name for segment in segments]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise LocalLearningError(
            f'recompute names {unknown}, and the segments of this backbone are {", ".join(known)}: '
            'take some of these'
        )
    found = []
    for module in modules:
        bounds = [module.start, *(i + 1 for i in module[:-1] if known[i] in names), module.stop]
        found.append([range(a, b) for a, b in zip(bounds, bounds[1:])])
    return found


def _smallest(
    footprints: Sequence[Footprint], segments: Sequence[Segment], module: range, count: int
) -> List[range]:
    """The spans with the smallest sum of their inputs and the largest of them.

    By dynamic programming over (spans, end). Two figures describe a start of the module, so that
    of each only those are followed that no other one beats in both.
    """
    saved = [0]
    for i in module:
        saved.append(saved[-1] + footprints[i].saved_bytes)
    # (bytes of the inputs, bytes of the largest span) -> bounds
    Found = Dict[Tuple[int, int], List[int]]
    best: List[Found] = [{(0, 0): [module.start]}] + [{} for _ in module]
    for _ in range(count):
        longer: List[Found] = [{} for _ in best]
        for end in range(1, len(best)):
            for start in range(end):
                before = segments[module.start + start - 1] if start else None
                kept = (
                    0
                    if before is None or _is_returned(before)
                    else footprints[module.start + start - 1].output_bytes
                )
                for (inputs, largest), bounds in best[start].items():
                    figures = (inputs + kept, max(largest, saved[end] - saved[start]))
                    longer[end].setdefault(figures, [*bounds, module.start + end])
            longer[end] = _unbeaten(longer[end])
        best = longer
    bounds = min(best[-1].items(), key=lambda item: (sum(item[0]), item[0]))[1]
    return [range(a, b) for a, b in zip(bounds, bounds[1:])]


def _is_returned(segment: Segment) -> bool:
    return segment.level is not None and segment.level_output is None


def _unbeaten(found: dict) -> dict:
    kept, least = {}, None
    for figures in sorted(found):
        if least is None or figures[1] < least:
            least = figures[1]
            kept[figures] = found[figures]
    return kept
