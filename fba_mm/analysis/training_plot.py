"""Several trainings in one picture: loss, metric, memory and time; and their local modules."""

import os
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Union

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import LocalLearningError
from .memory_plot import COLOURS, MARKERS
from .training_log import X_AXES, Series, TrainingLog

_X_LABELS = {'iterations': 'iteration', 'epochs': 'epoch', 'time': 'time of iterations [{}]'}
# Modules in a legend, at most.
_MOST_NAMES = 6
# What modules log, and how an axis calls it.
_OF_MODULES = {'loss': 'local loss', 'accuracy': 'local accuracy [%]', 'memory': 'memory [MiB]'}


@dataclass(frozen=True)
class _Panel:
    title: str
    draw: Callable[[Axes], None]


def draw_training(
    logs: Mapping[str, TrainingLog],
    out_file: Union[str, 'os.PathLike[str]'],
    x: str = 'iterations',
    metrics: Optional[Sequence[str]] = None,
    title: str = 'Training',
) -> Figure:
    """Draw trainings together, and below them the local modules of each, and save it as PNG.

    Above stand the loss, the metrics of the validation, the memory and the time of an iteration,
    as far as they are logged. Memory is MMEngine's where all have it (CUDA), or else what
    :class:`LocalMemoryHook` has measured. A row for each training by local learning shows its
    modules' losses, accuracies (:class:`LocalAccuracyHook`) and memory.

    Args:
        logs: By name.
        out_file: Where to save; missing folders are made.
        x: ``'iterations'``, ``'epochs'`` or ``'time'``.
        metrics: Names of metrics; unset, the first that all trainings have.
        title: Of the picture.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: There is nothing to draw, a metric is unknown, or a training without
            epochs is to be drawn over these.

    Example:
        >>> logs = {name: TrainingLog.read(f'work_dirs/{name}') for name in ('bp', 'fba')}
        >>> figure = draw_training(logs, 'training.png', x='time')
    """
    if not logs:
        raise LocalLearningError('no training to draw: give the work directory of at least one')
    if x not in X_AXES:
        raise LocalLearningError(f'x={x!r}: give {", ".join(X_AXES)}')
    without = [name for name, log in logs.items() if not log.has_epochs]
    if x == 'epochs' and without:
        raise LocalLearningError(
            f'{without[0]} was trained without epochs: draw over iterations or time'
        )
    unit, factor = _time_unit(logs) if x == 'time' else ('', 1.0)
    shown = _Drawing(logs, x, factor, _X_LABELS[x].format(unit))
    rows = [shown.together(_metrics_of(logs, metrics))]
    rows += [shown.modules_of(name) for name in logs]
    rows = [row for row in rows if row]
    columns = max(map(len, rows))
    figure = Figure(figsize=(4.1 * columns, 3.0 * len(rows) + 0.4), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, x=0.01, ha='left')
    for panels, axes_of_row in zip(rows, figure.subplots(len(rows), columns, squeeze=False)):
        for panel, axes in zip(panels, axes_of_row):
            axes.set_title(panel.title, fontsize=11)
            panel.draw(axes)
            axes.grid(axis='y', color='0.92')
            axes.set_axisbelow(True)
            for side in ('top', 'right'):
                axes.spines[side].set_visible(False)
        for axes in axes_of_row[len(panels) :]:
            axes.set_axis_off()
    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


class _Drawing:
    """What panels there are, and how each is drawn."""

    def __init__(self, logs: Mapping[str, TrainingLog], x: str, factor: float, x_label: str):
        self._logs, self._x, self._factor, self._x_label = logs, x, factor, x_label

    def together(self, metrics: Sequence[str]) -> List[_Panel]:
        memory = next(
            (
                name
                for name in ('memory', 'step_memory')
                if all(log.series(name)[0] for log in self._logs.values())
            ),
            None,
        )
        are_local = any(log.modules('loss') for log in self._logs.values())
        panels = [self._all('loss' + (', last module' if are_local else ''), 'loss')]
        panels += [self._all(name, name, 'o') for name in metrics]
        if memory is not None:
            what = 'memory' if memory == 'memory' else 'memory of a step, live tensors'
            panels.append(self._all(f'{what} [MiB]', memory, from_zero=True))
        panels.append(self._all('time of an iteration [s]', 'time', from_zero=True))
        return panels

    def modules_of(self, name: str) -> List[_Panel]:
        found = {what: self._logs[name].modules(what, self._x) for what in _OF_MODULES}
        return [
            _Panel(f'{name}: {_OF_MODULES[what]}', self._draw_modules(series, what))
            for what, series in found.items()
            if series
        ]

    def _all(self, title: str, name: str, marker: str = '', from_zero: bool = False) -> _Panel:
        def draw(axes: Axes) -> None:
            for number, (label, log) in enumerate(self._logs.items()):
                at, values = log.series(name, self._x)
                axes.plot(
                    [one * self._factor for one in at],
                    values,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)] if marker else '',
                    markersize=5,
                    linewidth=1.4,
                    label=label,
                )
            if from_zero:
                axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9, loc='lower right' if marker else 'upper right')
            axes.set_xlabel(self._x_label)

        return _Panel(title, draw)

    def _draw_modules(self, series: Dict[int, Series], what: str) -> Callable[[Axes], None]:
        numbers = list(series)
        step = -(-len(numbers) // _MOST_NAMES)
        # From light to dark with depth; the lightest would be lost on white.
        depths = [order / max(len(numbers) - 1, 1) for order in range(len(numbers))]
        colours = [colormaps['viridis_r'](0.12 + 0.88 * depth) for depth in depths]

        def draw_lines(axes: Axes) -> None:
            for order, number in enumerate(numbers):
                at, values = series[number]
                named = order % step == 0 or order == len(numbers) - 1
                axes.plot(
                    [one * self._factor for one in at],
                    values,
                    color=colours[order],
                    marker='o' if what == 'accuracy' else '',
                    markersize=4,
                    linewidth=1.3,
                    label=f'module {number}' if named else None,
                )
            place = 'lower right' if what == 'accuracy' else 'upper right'
            axes.legend(frameon=False, fontsize=8, loc=place)
            axes.set_xlabel(self._x_label)

        def draw_bars(axes: Axes) -> None:
            axes.bar(numbers, [values[-1] for _, values in series.values()], color=colours)
            axes.set_xticks(numbers[::step])
            axes.set_xlabel('module')

        # A module takes the same in all steps on batches of one shape.
        return draw_bars if what == 'memory' else draw_lines


def _metrics_of(logs: Mapping[str, TrainingLog], asked: Optional[Sequence[str]]) -> List[str]:
    lists = [log.metrics for log in logs.values()]
    common = [name for name in lists[0] if all(name in names for names in lists)]
    if not asked:
        return common[:1]
    unknown = [name for name in asked if not any(name in names for names in lists)]
    if unknown:
        known = list(dict.fromkeys(name for names in lists for name in names))
        raise LocalLearningError(
            f'metric {unknown[0]} is in no log: choose of {", ".join(known) or "none, it has none"}'
        )
    return list(asked)


def _time_unit(logs: Mapping[str, TrainingLog]) -> tuple:
    longest = max(log.train[-1]['seconds'] for log in logs.values())
    return ('h', 1 / 3600) if longest > 7200 else ('min', 1 / 60) if longest > 120 else ('s', 1.0)
