"""The ways to train as a picture: memory over time."""

import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..analysis.memory_plot import COLOURS

MIB = 2**20
_KINDS = ((True, 'exact', 'o', COLOURS[0]), (False, 'local learning', 's', COLOURS[1]))


@dataclass(frozen=True)
class Point:
    """A way to train in the picture.

    Attributes:
        name: In the key.
        exact: Whether losses and gradients are those of the stock config.
        time: Of a step, over that of the stock config.
        nbytes: What a step takes.
    """

    name: str
    exact: bool
    time: float
    nbytes: int


def frontier(points: Sequence[Point]) -> List[Point]:
    """Those that no other one beats in both time and memory, by time.

    Args:
        points: Of one kind.
    """
    found: List[Point] = []
    for point in sorted(points, key=lambda p: (p.time, p.nbytes)):
        if not found or point.nbytes < found[-1].nbytes:
            found.append(point)
    return found


def draw_frontier(
    points: Sequence[Point],
    out_file: Union[str, 'os.PathLike[str]'],
    title: str,
    x_label: str = 'operations of a step / as shipped',
    y_label: str = 'tensors of a step [MiB]',
    budget: Optional[int] = None,
) -> Figure:
    """Draw memory over time of several ways to train, and save the picture as PNG.

    Exact and local ways each have a line through those that no other one of the kind beats. These
    have numbers, which a key explains, and so has the first, which others are to be compared with;
    others are pale.

    Args:
        points: The ways.
        out_file: Where to save; missing folders are made.
        title: Of the picture.
        x_label: Of the axis of time.
        y_label: Of the axis of memory.
        budget: Bytes, for a line across.

    Returns:
        The figure that was saved.
    """
    figure = Figure(figsize=(10, 6), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=14, loc='left')
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.grid(color='0.92')
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    named: List[Point] = []
    key: List[Line2D] = []
    for exact, label, marker, colour in _KINDS:
        ways = [one for one in points if one.exact == exact]
        best = frontier(ways)
        style = dict(marker=marker, color=colour)
        axes.scatter(*_places(ways), s=28, alpha=0.35, linewidths=0, **style)
        if not best:
            continue
        axes.plot(*_places(best), linewidth=1.5, **style)
        key.append(Line2D([], [], label=label, linewidth=1.5, **style))
        if points[0] in ways and points[0] not in best:
            best.insert(0, points[0])
        for number, one in enumerate(best, len(named) + 1):
            axes.annotate(
                str(number),
                (one.time, one.nbytes / MIB),
                (6, 5),
                textcoords='offset points',
                fontsize=11,
                color=colour,
            )
            size = 6 if number < 10 else 9
            label = f'{one.name}: {one.nbytes / MIB:,.0f}\u00a0MiB'
            key.append(
                Line2D(
                    [],
                    [],
                    marker=f'${number}$',
                    color=colour,
                    linestyle='none',
                    markersize=size,
                    label=textwrap.fill(label, 38),
                )
            )
        named += best
    if budget is not None:
        line = dict(color='0.4', linestyle='--', linewidth=1)
        axes.axhline(budget / MIB, **line)
        key.append(Line2D([], [], label='budget', **line))
    axes.set_ylim(0, 1.1 * max(one.nbytes for one in points) / MIB)
    # What is far slower than all that is worth it stays out.
    times = [one.time for one in named]
    margin = 0.15 * max(max(times) - min(times), 0.2 * max(times))
    axes.set_xlim(min(times) - margin, max(times) + 2 * margin)
    beyond = [one.time for one in points if one.time > axes.get_xlim()[1]]
    if beyond:
        axes.set_xlabel(
            f'{x_label} ({len(beyond)} ways beyond, up to {max(beyond):.1f})', fontsize=12
        )
    figure.legend(handles=key, loc='outside right upper', frameon=False, fontsize=10)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file)
    return figure


def _places(points: Sequence[Point]) -> tuple:
    return [one.time for one in points], [one.nbytes / MIB for one in points]
