"""Several configs together: the ways to train each, in one table and one picture."""

import math
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from ..analysis.memory_plot import COLOURS, MARKERS
from ..errors import LocalLearningError
from .frontier_plot import MIB, Point, frontier

# Line and fill of exact ways and of local ones.
_KINDS = {True: ('exact', '-', None), False: ('local learning', '--', 'white')}


def joint_table(configs: Mapping[str, Sequence[Point]], title: str, shipped: str) -> Table:
    """A row for each config: what it takes, and the exact and the local way of least memory.

    Args:
        configs: Ways by config; the first is what others are compared with. A time that is NaN
            wasn't measured.
        title: Of the table.
        shipped: What the first way is called.

    Returns:
        Memory in MiB, with its ratio to the first way's, and time over that of the first way.
    """
    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column('config', overflow='fold')
    table.add_column(f'{shipped}\nMiB', justify='right')
    for exact in _KINDS:
        table.add_column(f'least, {"exact" if exact else "local"}')
        table.add_column('MiB', justify='right')
        table.add_column('ratio', justify='right')
        table.add_column('time', justify='right')
    for name, points in configs.items():
        first, cells = points[0], []
        for exact in _KINDS:
            ways = [one for one in points if one.exact == exact]
            if not ways:
                cells += ['–', '', '', '']
                continue
            least = min(ways, key=lambda one: one.nbytes)
            time = least.time / first.time
            cells += [
                least.name,
                f'{least.nbytes / MIB:,.0f}',
                f'{least.nbytes / first.nbytes:.2f}',
                '' if math.isnan(time) else f'{time:.2f}',
            ]
        table.add_row(name, f'{first.nbytes / MIB:,.0f}', *cells)
    return table


def draw_joint_frontier(
    configs: Mapping[str, Sequence[Point]],
    out_file: Union[str, Path],
    title: str,
    shipped: str = 'as shipped',
    time: str = 'operations of a step',
) -> Figure:
    """Draw memory over time of several configs' ways to train, over what each takes as it is.

    A config has a colour; lines go through those ways of a kind that no other one beats in both.

    Args:
        configs: Ways by config; the first is what others are compared with.
        out_file: Where to save; missing folders are made.
        title: Of the picture.
        shipped: What the first way is called.
        time: What is meant by time.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: There is nothing to draw.
    """
    if not configs:
        raise LocalLearningError('no way to train to draw: give at least one config')
    figure = Figure(figsize=(9, 5.4), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=14, loc='left')
    axes.set_xlabel(f'{time} / {shipped}', fontsize=12)
    axes.set_ylabel(f'memory / {shipped}', fontsize=12)
    handles: List[Line2D] = []
    worth: Dict[str, List[Point]] = {}
    for number, (name, points) in enumerate(configs.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        relative = [
            Point(p.name, p.exact, p.time / points[0].time, p.nbytes / points[0].nbytes)
            for p in points
        ]
        for exact, (_, line, fill) in _KINDS.items():
            of_kind = [one for one in relative if one.exact == exact]
            best = frontier(of_kind)
            worth.setdefault(name, []).extend(best)
            style = dict(color=colour, markerfacecolor=fill or colour, marker=marker)
            others = [one for one in of_kind if one not in best]
            axes.plot(*_places(others), linestyle='none', alpha=0.3, markersize=5, **style)
            axes.plot(*_places(best), linestyle=line, linewidth=1.6, markersize=7, **style)
        handles.append(Line2D([], [], color=colour, marker=marker, label=name))
    for label, line, fill in _KINDS.values():
        handles.append(
            Line2D(
                [], [], color='0.3', linestyle=line, marker='o', markerfacecolor=fill, label=label
            )
        )
    axes.axhline(1, color='0.8', linewidth=1, zorder=0)
    axes.axvline(1, color='0.8', linewidth=1, zorder=0)
    times = [one.time for ways in worth.values() for one in ways]
    # What is far slower than all that is worth it would press the rest together.
    axes.set_xlim(min(times) - 0.05, max(times) + 0.1)
    axes.set_ylim(bottom=0)
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=10,
        loc='upper center',
        bbox_to_anchor=(0.5, -0.13),
        ncols=min(len(handles), 3),
    )
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def _places(points: Sequence[Point]) -> tuple:
    return [one.time for one in points], [one.nbytes for one in points]
