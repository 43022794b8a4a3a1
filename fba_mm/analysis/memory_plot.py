"""The memory of several ways to train, drawn as lines along one training step."""

import os
from typing import Any, Dict, List, Union

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ..errors import LocalLearningError
from .memory import StepMemory

# Okabe and Ito's palette without its yellow, which is too pale for a line on white. Readers with
# any common colour blindness tell these apart; in black and white the markers do. No dashes: they
# would tear the narrow spikes apart. https://jfly.uni-koeln.de/color/
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
# Where a peak's value may stand, in points from its dot: above, beside, below.
VALUE_OFFSETS = ((0, 15), (48, 2), (-48, 2), (42, 17), (-42, 17), (48, -13), (-48, -13), (0, 30))
MIB = 2**20


def draw_memory(
    timelines: Dict[str, StepMemory],
    out_file: Union[str, 'os.PathLike[str]'],
    title: str = 'Memory along one training step',
    x_axis: str = 'share',
    y_label: str = 'memory [MiB]',
) -> Figure:
    """Draw what each variant holds in memory during a step, with its peak, and save it as PNG.

    Args:
        timelines (dict[str, StepMemory]): What was measured, by the name to show in the legend.
        out_file (str | os.PathLike): Where to save; missing folders are made.
        title (str): Defaults to 'Memory along one training step'.
        x_axis (str): 'share' stretches every step to the same width, 'seconds' shows how long each
            one took. Defaults to 'share'.
        y_label (str): Defaults to 'memory [MiB]'.

    Returns:
        matplotlib.figure.Figure: The figure that was saved.

    Raises:
        LocalLearningError: If there is nothing to draw or ``x_axis`` is another word.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from fba_mm.analysis.memory import measure_step
        >>> found = measure_step(lambda: torch.ones(1000).exp().sum())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figure = draw_memory({'exp': found}, f'{folder}/memory.png', title='One op')
    """
    if not timelines:
        raise LocalLearningError('no timeline to draw: measure at least one step')
    if x_axis not in ('share', 'seconds'):
        raise LocalLearningError(f"x_axis='{x_axis}': give 'share' or 'seconds'")

    figure = Figure(figsize=(9, 5), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=15, loc='left', pad=24)
    axes.set_xlabel('share of the step [%]' if x_axis == 'share' else 'time [s]', fontsize=13)
    axes.set_ylabel(y_label, fontsize=13)
    axes.tick_params(labelsize=12)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)

    lines, values, mark_names = [], [], []
    for number, (name, memory) in enumerate(timelines.items()):
        style = dict(
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=9,
            markeredgecolor='white',
        )
        unit = memory.seconds / 100 if x_axis == 'share' else 1.0
        lines.append(Line2D([], [], linewidth=1.8, label=name, **style))
        values.append(_draw_line(axes, memory, unit, style))
        mark_names += _draw_marks(axes, memory, unit, style['color'])
    axes.margins(x=0.01)
    lowest = min(nbytes for memory in timelines.values() for _, nbytes in memory.timeline)
    highest = max(memory.peak_bytes for memory in timelines.values())
    axes.set_ylim(1.05 * min(lowest, 0) / MIB, 1.12 * max(highest, 1) / MIB)
    axes.legend(
        handles=lines,
        fontsize=12,
        frameon=False,
        loc='upper center',
        bbox_to_anchor=(0.5, -0.14),
        ncols=min(len(lines), 3),
        handlelength=3,
    )

    # Where the texts come to lie is known only once everything else has its place.
    figure.draw_without_rendering()
    _place_values(values)
    _drop_overlapping(mark_names)

    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def _draw_line(axes: Axes, memory: StepMemory, unit: float, style: Dict[str, Any]) -> Annotation:
    """Draw one variant with a marker on its peak; return the peak's value as text."""
    seconds, nbytes = zip(*memory.timeline)
    x = [moment / unit for moment in (*seconds, memory.seconds)]
    y = [count / MIB for count in (*nbytes, nbytes[-1])]
    # What is alive changes with an op and stays until the next.
    axes.plot(x, y, color=style['color'], linewidth=1.8, drawstyle='steps-post')
    # On CUDA the peak may lie between two samples: at its height, but where the line is highest.
    at = x[nbytes.index(max(nbytes))]
    height = memory.peak_bytes / MIB
    axes.plot([at], [height], linestyle='none', zorder=3, **style)
    return axes.annotate(
        f'{height:.1f} MiB' if height < 100 else f'{height:.0f} MiB',
        (at, height),
        xytext=VALUE_OFFSETS[0],
        textcoords='offset points',
        ha='center',
        va='center',
        fontsize=12,
        fontweight='bold',
        color=style['color'],
        path_effects=[withStroke(linewidth=3, foreground='white')],
        zorder=4,
    )


def _draw_marks(axes: Axes, memory: StepMemory, unit: float, colour: str) -> List[Text]:
    texts = []
    for name, seconds in memory.marks:
        axes.axvline(seconds / unit, color=colour, alpha=0.35, linewidth=1, zorder=1)
        texts.append(
            axes.text(
                seconds / unit,
                1.01,
                name,
                color=colour,
                alpha=0.8,
                fontsize=10,
                transform=axes.get_xaxis_transform(),
                ha='center',
                va='bottom',
            )
        )
    return texts


def _place_values(values: List[Annotation]) -> None:
    """Move each value to the first place around its marker where it hides nothing of the kind."""
    taken = [_marker_box(value) for value in values]
    for value in values:
        frame = value.axes.get_window_extent()
        for offset in VALUE_OFFSETS:
            value.set_position(offset)
            box = Text.get_window_extent(value)  # an Annotation's own takes in its marker
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _marker_box(value: Annotation) -> Bbox:
    x, y = value.axes.transData.transform(value.xy)
    return Bbox.from_extents(x - 8, y - 8, x + 8, y + 8)


def _drop_overlapping(texts: List[Text]) -> None:
    """Hide the names of marks that would be printed over an earlier one's; their lines stay."""
    taken: List[Bbox] = []
    for text in texts:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.set_visible(False)
        else:
            taken.append(box)
