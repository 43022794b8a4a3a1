"""Similarity of networks' layers as heat maps and as curves over depth."""

import os
from typing import List, Sequence, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import LocalLearningError
from .layer_similarity import LayerSimilarity
from .memory_plot import COLOURS, MARKERS

# Names of layers at an axis, at most; more would cover each other.
_MOST_NAMES = 18


def draw_layer_similarity(
    similarities: Sequence[LayerSimilarity],
    out_file: Union[str, 'os.PathLike[str]'],
    title: str = 'Similarity of layers (CKA)',
) -> Figure:
    """Draw a heat map of each comparison, and all as curves over depth, and save it as PNG.

    Curves are of each layer with its counterpart, and averaged over all layers of the first
    network; lines in a heat map are borders of local modules. Several trainings of a network are
    averaged, the band around a curve is their standard deviation.

    Args:
        similarities: From :func:`compare_networks`, all with the same first network.
        out_file: Where to save; missing folders are made.
        title: Of the picture.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: There is nothing to draw.
    """
    if not similarities:
        raise LocalLearningError('no comparison to draw: compare at least one network')
    maps = len(similarities)
    aligned = [one for one in similarities if one.are_aligned]
    curves = 2 if aligned else 1
    columns = max(maps, curves)
    figure = Figure(figsize=(4.3 * columns + 0.8, 8.9), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.12, 1))
    above.suptitle(title, fontsize=14, x=0.01, ha='left')
    axes_of_maps = above.subplots(1, columns, squeeze=False)[0]
    image = None
    for axes, one in zip(axes_of_maps, similarities):
        image = _draw_map(axes, one)
    for axes in axes_of_maps[maps:]:
        axes.set_axis_off()
    above.colorbar(image, ax=list(axes_of_maps), shrink=0.8, label='CKA', pad=0.01)
    panels = list(below.subplots(1, curves, squeeze=False)[0])
    first = similarities[0].first
    if aligned:
        _draw_curves(panels[0], aligned, 'same_layer', f'each layer with the same layer of {first}')
    _draw_curves(
        panels[-1], similarities, 'averaged', f'each layer, averaged over all layers of {first}'
    )
    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def _draw_map(axes: Axes, one: LayerSimilarity):
    image = axes.imshow(
        one.matrix.numpy(), origin='lower', vmin=0, vmax=1, cmap='magma', interpolation='nearest'
    )
    axes.set_facecolor('0.7')  # Where a layer tells no images apart.
    axes.set_title(f'{one.first} and {one.second}', fontsize=11)
    axes.set_ylabel(f'layers of {one.first}')
    axes.set_xlabel(f'layers of {one.second}')
    _name_layers(axes, one.second_layers, 'x')
    _name_layers(axes, one.first_layers, 'y')
    for name in one.module_ends[:-1]:
        axes.axvline(one.second_layers.index(name) + 0.5, color='white', linewidth=1)
    return image


def _name_layers(axes: Axes, names: Sequence[str], which: str) -> None:
    step = -(-len(names) // _MOST_NAMES)
    at = list(range(0, len(names), step))
    set_ticks = axes.set_xticks if which == 'x' else axes.set_yticks
    turned = dict(rotation=90) if which == 'x' else {}
    set_ticks(at, [names[i] for i in at], fontsize=7.5, **turned)


def _draw_curves(axes: Axes, similarities: Sequence[LayerSimilarity], kind: str, title: str):
    axes.set_title(title, fontsize=11)
    lists: List[List[str]] = [one.second_layers for one in similarities]
    same_names = all(names == lists[0] for names in lists)
    for number, one in enumerate(similarities):
        values = getattr(one, kind).numpy()
        # Networks of other depths share an axis from the first to the last layer.
        x = np.arange(values.shape[1]) if same_names else np.linspace(0, 100, values.shape[1])
        colour = COLOURS[number % len(COLOURS)]
        mean = values.mean(0)
        axes.plot(
            x,
            mean,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=one.second,
        )
        if len(values) > 1:
            deviation = values.std(0, ddof=1)
            axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
        for name in one.module_ends[:-1] if same_names else ():
            axes.axvline(one.second_layers.index(name) + 0.5, color='0.85', linewidth=1, zorder=0)
    if same_names:
        _name_layers(axes, lists[0], 'x')
    else:
        axes.set_xlabel('depth [%]')
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel('CKA')
    axes.grid(axis='y', color='0.92')
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
