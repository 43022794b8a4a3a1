"""The ways to train as a picture: memory over time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Union

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..analysis.memory_plot import COLOURS

MIB = 2**20
_KINDS = ((True, 'exact', 'o', COLOURS[0]), (False, 'local learning', 's', COLOURS[1]))
# Where a label may stand, in points from its dot, and how it is aligned.
_PLACES = (
    (8, 6, 'left'),
    (8, -11, 'left'),
    (-8, 6, 'right'),
    (-8, -11, 'right'),
    (0, 12, 'center'),
    (0, -18, 'center'),
    (12, 18, 'left'),
    (12, -24, 'left'),
    (0, 26, 'center'),
    (-12, 18, 'right'),
    (-12, -24, 'right'),
    (0, -32, 'center'),
)


@dataclass(frozen=True)
class Point:
    """A way to train in the picture.

    Attributes:
        name: Its label.
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
    have names, and so has the first, which others are to be compared with; others are pale.

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
    for exact, label, marker, colour in _KINDS:
        ways = [one for one in points if one.exact == exact]
        best = frontier(ways)
        axes.scatter(
            [one.time for one in ways],
            [one.nbytes / MIB for one in ways],
            s=28,
            marker=marker,
            color=colour,
            alpha=0.35,
            linewidths=0,
        )
        if best:
            axes.plot(
                [one.time for one in best],
                [one.nbytes / MIB for one in best],
                marker=marker,
                color=colour,
                label=label,
                linewidth=1.5,
            )
        named += best
    named += [one for one in points[:1] if one not in named]
    if budget is not None:
        axes.axhline(budget / MIB, color='0.4', linestyle='--', linewidth=1, label='budget')
    axes.set_ylim(0, 1.1 * max(one.nbytes for one in points) / MIB)
    # Names stand to the right; what is far slower than all that is worth it stays out.
    times = [one.time for one in named]
    width = max(max(times) - min(times), 0.2 * max(times))
    axes.set_xlim(min(times) - 0.15 * width, max(times) + width)
    beyond = [one.time for one in points if one.time > axes.get_xlim()[1]]
    if beyond:
        axes.set_xlabel(
            f'{x_label} ({len(beyond)} ways beyond, up to {max(beyond):.1f})', fontsize=12
        )
    axes.legend(frameon=False, fontsize=11)
    figure.canvas.draw()
    _label(axes, named, points)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file)
    return figure


def _label(axes: Axes, named: Sequence[Point], points: Sequence[Point]) -> None:
    """Write each name where it covers neither a dot nor another name."""
    canvas = axes.figure.canvas
    renderer = canvas.get_renderer()
    dots = [axes.transData.transform((one.time, one.nbytes / MIB)) for one in points]
    legend = axes.get_legend().get_window_extent(renderer)
    lines = [
        line.get_path().interpolated(20).transformed(line.get_transform()).vertices
        for line in axes.get_lines()
    ]
    taken = [legend]
    for one in named:
        colour = next(c for exact, _, _, c in _KINDS if exact == one.exact)
        best = None
        for x, y, align in _PLACES:
            text = axes.annotate(
                one.name,
                (one.time, one.nbytes / MIB),
                (x, y),
                textcoords='offset points',
                ha=align,
                fontsize=9,
                color=colour,
            )
            box = text.get_window_extent(renderer).expanded(1.02, 1.1)
            frame = axes.get_window_extent(renderer)
            badness = sum(box.overlaps(other) for other in taken) * 100
            badness += 10 * sum(box.contains(*dot) for dot in dots)
            badness += sum(box.contains(*point) for line in lines for point in line)
            badness += 1000 * (
                not (
                    frame.x0 <= box.x0
                    and box.x1 <= frame.x1
                    and frame.y0 <= box.y0
                    and box.y1 <= frame.y1
                )
            )
            if best is None or badness < best[0]:
                if best is not None:
                    best[1].remove()
                best = (badness, text, box)
            else:
                text.remove()
        taken.append(best[2])
