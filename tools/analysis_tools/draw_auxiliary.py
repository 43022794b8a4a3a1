r"""Draw the auxiliary networks of a config: layers, shapes and parameters up to each loss.

    python tools/analysis_tools/draw_auxiliary.py configs/classification/cifar10/resnet32_dgl.py
    python tools/analysis_tools/draw_auxiliary.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py \
        --local 4 --modules 1 3 --out slm.png
    python tools/analysis_tools/draw_auxiliary.py \
        configs/classification/cifar10/resnet32_{dgl,fba,infopro}.py --modules 7

Several configs are drawn side by side. One training step is done on a synthetic batch: no data and
no checkpoints are needed.
"""

import argparse
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath
from mmengine.model import BaseModel
from torch import Tensor, nn

from fba_mm import command_line
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.local import find_local_backbone
from fba_mm.local.auxiliary.base import Auxiliary
from fba_mm.local.local_step import LocalStep
from fba_mm.local.task_loss import StubbableBackbone
from fba_mm.localize import localize

# What is looked into, instead of being one box.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Auxiliary, BaseModel)
# Fill of a box by who trains it, in the legend's order.
_FILLS = {
    'module': '#DCEBD2',
    'auxiliary': '#CFE3F5',
    'shared': '#FBE3C8',
    'bank': '#EAD7EC',
    'averaged': '#E4E4E4',
    'fixed': '#FFFFFF',
}
_MEANINGS = {
    'module': "the module's output",
    'auxiliary': 'trained with this module, gone after training',
    'shared': "the model's own, shared by all modules",
    'bank': "maps of other modules from the feature bank, beside this one's",
    'averaged': 'not trained by gradients: an average of weights',
    'fixed': 'nothing to train',
}
# What a text in a box may take of the width of its column.
_TEXT_SHARE = 0.78
_FONT_SIZE = 8.5


@dataclass(frozen=True)
class Layer:
    """One layer, or block, that ran for a module's loss.

    Attributes:
        name: Class of the layer, or what the bank gives.
        kind: ``'auxiliary'``, ``'shared'`` (the model's own), ``'averaged'`` (without gradients),
            ``'fixed'`` (nothing to train) or ``'bank'`` (no layer: maps of the feature bank).
        shape: Of its output without the batch, as text; empty where it is no tensor.
        parameters: Number of parameters.
        branches: Whether it starts again from the module's output, after other layers.
    """

    name: str
    kind: str
    shape: str
    parameters: int
    branches: bool = False


@dataclass(frozen=True)
class AuxiliaryRun:
    """What ran between a module's output and its losses.

    Attributes:
        module: Number of the module, from 1.
        segments: Its segments, as text.
        shape: Of the module's output without the batch.
        layers: In the order in which they ran.
        losses: Names of the losses.
        parameters: Number of parameters of the auxiliary network.
        network: What to call the network that it is of, where several are drawn.
    """

    module: int
    segments: str
    shape: str
    layers: Tuple[Layer, ...]
    losses: Tuple[str, ...]
    parameters: int
    network: str = ''


def trace_auxiliary(step: TrainingStep, data: Any) -> List[AuxiliaryRun]:
    """Do one training step, and note what each module's loss was computed with.

    Args:
        step: Of a model with a :class:`LocalBackbone`.
        data: What the config's dataloader yields; :func:`synthetic_batch` makes such a batch.

    Raises:
        LocalLearningError: There are no auxiliary networks.

    Example:
        >>> cfg = load_config('configs/classification/cifar10/resnet32_dgl.py')
        >>> step = TrainingStep(cfg)
        >>> runs = trace_auxiliary(step, synthetic_batch(step.model, (4, 3, 32, 32)))
    """
    local_backbone = find_local_backbone(step.model) if step.hooks else None
    if local_backbone is None or not len(local_backbone.auxiliary):
        raise LocalLearningError(
            'this config has no auxiliary networks: draw one that trains by local learning, with '
            'num_modules above 1, or give --local K'
        )
    runs: List[AuxiliaryRun] = []
    for k, auxiliary in enumerate(local_backbone.auxiliary):
        auxiliary.loss = _noting(step, auxiliary, k, runs)
    try:
        step(data)
    finally:
        for auxiliary in local_backbone.auxiliary:
            del auxiliary.loss  # uncovers the class's
    return runs


def _noting(step: TrainingStep, auxiliary: Auxiliary, index: int, runs: List[AuxiliaryRun]):
    loss = auxiliary.loss
    local_backbone = find_local_backbone(step.model)

    def noting(x: Tensor, levels: Dict[int, Tensor], local_step: LocalStep):
        with _noted(step.model, auxiliary, x) as layers, _bank_noted(auxiliary, local_step, layers):
            losses = loss(x, levels, local_step)
        names = [local_backbone.segments[i].name for i in local_backbone.module_segments[index]]
        runs.append(
            AuxiliaryRun(
                index + 1,
                names[0] if len(names) == 1 else f'{names[0]} … {names[-1]}',
                _shape(x),
                tuple(layers),
                tuple(name for name in losses if 'loss' in name),
                sum(p.numel() for p in auxiliary.parameters()),
            )
        )
        return losses

    return noting


@contextmanager
def _noted(model: nn.Module, auxiliary: Auxiliary, x: Tensor) -> Iterator[List[Layer]]:
    """Note the outermost layers that run in this context, those with parameters or that pool."""
    layers: List[Layer] = []
    own = set(auxiliary.modules())
    running: List[nn.Module] = []
    handles = []

    def before(module: nn.Module, args: tuple) -> None:
        running.append(module)

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        running.pop()
        if running or not _worth_a_box(module):
            return
        parameters = [*module.parameters()]
        kind = 'auxiliary' if module in own else 'shared'
        if not parameters:
            kind = 'fixed'
        elif not any(p.requires_grad for p in parameters):
            kind = 'averaged'
        layers.append(
            Layer(
                type(module).__name__,
                kind,
                _shape(output),
                sum(p.numel() for p in parameters),
                bool(layers) and any(value is x for value in args),
            )
        )

    # An auxiliary network may be part of the model: each module is hooked once.
    for module in {*model.modules(), *own}:
        # A backbone that only answers with given features does nothing here.
        if not isinstance(module, (*_CONTAINERS, StubbableBackbone)):
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _bank_noted(auxiliary: Auxiliary, step: LocalStep, layers: List[Layer]) -> Iterator[None]:
    """Note what the bank gives in this context, before what it is given to."""
    point = auxiliary.cut_point
    own = {stage.level for stage in point.stages if stage.stage == point.stage}
    given: Dict[str, Tensor] = {}
    places: List[int] = []
    bank, get, pooled, head_loss = step.bank, step.bank.get, step.bank.pooled, step.head_loss

    def noting_get(level: Union[int, str]) -> Optional[Tensor]:
        found = get(level)
        if found is not None and level not in own:
            given[f'level {level}' if isinstance(level, int) else str(level)] = found
            if point.reduced_head is not None:  # The head makes an image before there is a loss.
                places.append(len(layers))
        return found

    def noting_pooled() -> List[Tensor]:
        found = pooled()
        given.update((f'module {k}', one) for k, one in enumerate(found, 1))
        return found

    def noting_head_loss(*args: Any, **kwargs: Any):
        places.append(len(layers))
        return head_loss(*args, **kwargs)

    bank.get, bank.pooled, step.head_loss = noting_get, noting_pooled, noting_head_loss
    try:
        yield
    finally:
        del bank.get, bank.pooled, step.head_loss  # uncovers the class's
    if given:
        names, shapes = ', '.join(given), list(dict.fromkeys(map(_shape, given.values())))
        place = places[0] if places else len(layers)
        layers.insert(place, Layer(f'feature bank: {names}', 'bank', ', '.join(shapes), 0))


def _worth_a_box(module: nn.Module) -> bool:
    has_weight = any(p.dim() > 1 for p in module.parameters())
    return has_weight or 'Pool' in type(module).__name__


def _shape(output: Any) -> str:
    if isinstance(output, (tuple, list)) and output and isinstance(output[-1], Tensor):
        # Several levels: the largest map says where the cost is.
        several = f' + {len(output) - 1} smaller' if len(output) > 1 else ''
        return _shape(max(output, key=torch.Tensor.numel)) + several
    return '×'.join(map(str, output.shape[1:])) if isinstance(output, Tensor) else ''


def draw_auxiliary(
    runs: Sequence[AuxiliaryRun],
    out_file: Union[str, 'os.PathLike[str]'],
    modules: Optional[Sequence[int]] = None,
    title: str = 'Auxiliary networks',
) -> Figure:
    """Draw what was traced, a column for each module, from its output up to its losses.

    Args:
        runs: From :func:`trace_auxiliary`, of one network or of several, one after the other.
        out_file: A PNG file; missing folders are made.
        modules: Numbers of the modules to draw, of each network. Unset, the first, one in the
            middle, and the last that has an auxiliary network.
        title: Of the figure.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: A module has no auxiliary network.
    """
    drawn = [
        run
        for name in dict.fromkeys(run.network for run in runs)
        for run in _chosen([run for run in runs if run.network == name], modules)
    ]
    tallest = max(len(run.layers) for run in drawn)
    width = max(3.1, max(map(_text_width, drawn)) / _TEXT_SHARE)
    figure = Figure(figsize=(width * len(drawn) + 0.4, 0.52 * tallest + 2.5), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    axes.set(xlim=(-0.55, len(drawn) - 0.45), ylim=(-1.3, tallest + 2.5))
    kinds: Dict[str, None] = {'module': None}
    for column, run in enumerate(drawn):
        _draw_column(axes, column, run)
        kinds.update((layer.kind, None) for layer in run.layers)
    axes.text(-0.5, tallest + 2.4, title, fontsize=13, fontweight='bold', va='top')
    kinds = {kind: None for kind in _FILLS if kind in kinds}
    # Below the names of networks, where there are several.
    top = -1.0 if any(run.network for run in drawn) else -0.75
    for row, kind in enumerate(kinds):
        y = top - 0.38 * row
        axes.add_patch(
            Rectangle(
                (-0.5, y - 0.11), 0.05, 0.22, facecolor=_FILLS[kind], edgecolor='.45', linewidth=0.8
            )
        )
        axes.text(-0.41, y, _MEANINGS[kind], fontsize=8.5, va='center')
    axes.set_ylim(top - 0.1 - 0.38 * len(kinds), tallest + 2.5)
    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def _chosen(runs: Sequence[AuxiliaryRun], modules: Optional[Sequence[int]]) -> List[AuxiliaryRun]:
    """Those of one network to draw."""
    known = {run.module: run for run in runs}
    if modules is None:
        modules = sorted({runs[0].module, runs[len(runs) // 2].module, runs[-1].module})
    strangers = [number for number in modules if number not in known]
    if strangers:
        whose = f'{runs[0].network}: ' if runs[0].network else ''
        raise LocalLearningError(
            f'{whose}module {strangers[0]} has no auxiliary network: give numbers from '
            f'{runs[0].module} to {runs[-1].module}'
        )
    return [known[number] for number in modules]


def _draw_column(axes: Axes, column: int, run: AuxiliaryRun) -> None:
    axes.text(column, -0.55, run.network, fontsize=9, fontweight='bold', ha='center', va='center')
    _box(axes, column, 0, 0.86, 0.62, _FILLS['module'])
    axes.text(
        column,
        0,
        _text_of(run),
        fontsize=_FONT_SIZE,
        ha='center',
        va='center',
    )
    for row, layer in enumerate(run.layers, start=1):
        if layer.branches:
            axes.text(
                column,
                row - 0.5,
                "from the module's output",
                fontsize=8,
                color='.35',
                ha='center',
                va='center',
                style='italic',
            )
        else:
            _arrow(axes, column, row)
        _box(axes, column, row, 0.86, 0.62, _FILLS[layer.kind])
        axes.text(
            column,
            row,
            _text_of(layer),
            fontsize=_FONT_SIZE,
            ha='center',
            va='center',
        )
    row = len(run.layers) + 1
    _arrow(axes, column, row)
    axes.text(
        column, row, ' + '.join(run.losses), fontsize=9, ha='center', va='center', fontweight='bold'
    )
    axes.text(
        column,
        row + 0.45,
        f'{_count(run.parameters) or "no parameters"} of its own',
        fontsize=8.5,
        ha='center',
        va='center',
        color='.35',
    )


def _text_of(drawn: Union[Layer, AuxiliaryRun]) -> str:
    if isinstance(drawn, AuxiliaryRun):
        return f'module {drawn.module}: {drawn.segments}\n{drawn.shape}'
    figures = filter(None, [drawn.shape, _count(drawn.parameters)])
    return f'{drawn.name}\n{" · ".join(figures)}'


def _text_width(run: AuxiliaryRun) -> float:
    """The widest line of a column, in inches."""
    lines = [line for part in (run, *run.layers) for line in _text_of(part).split('\n')]
    lines += [' + '.join(run.losses), run.network]
    paths = [TextPath((0, 0), line, _FONT_SIZE) for line in lines if line]
    return max(path.get_extents().width for path in paths) / 72


def _count(parameters: int) -> str:
    if not parameters:
        return ''
    return (
        f'{parameters:,} parameters' if parameters < 1e6 else f'{parameters / 1e6:.2f} M parameters'
    )


def _box(axes: Axes, x: float, y: float, width: float, height: float, fill: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle='round,pad=0,rounding_size=.05',
            facecolor=fill,
            edgecolor='.45',
            linewidth=0.8,
        )
    )


def _arrow(axes: Axes, x: float, row: int) -> None:
    axes.annotate(
        '',
        (x, row - 0.3),
        (x, row - 0.7),
        arrowprops=dict(arrowstyle='-|>', color='.45', linewidth=0.8, mutation_scale=7),
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the auxiliary networks of a config')
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='config',
        help='path of a config, or its name in a package (mmdet::...); several are drawn side by '
        'side',
    )
    command_line.add_local(parser, 'a stock config')
    parser.add_argument('--modules', type=int, nargs='+', help='numbers of modules, from 1')
    parser.add_argument('--title', help="default: the config's name")
    parser.add_argument(
        '--out', help='a PNG file (default: work_dirs/draw_auxiliary/<first config>.png)'
    )
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command_line.check_local(args)
    names = [Path(config.split('::')[-1]).stem for config in args.configs]
    out = Path(args.out or f'work_dirs/draw_auxiliary/{names[0]}.png')
    command_line.check_writable(out.parent, '--out')
    if len(set(names)) < len(names):
        raise LocalLearningError('two configs have the same name: draw them one by one')
    runs: List[AuxiliaryRun] = []
    for config, name in zip(args.configs, names):
        cfg = load_config(config)
        command_line.apply_cfg_options(cfg, args.cfg_options)
        if args.local is not None:
            cfg = localize(
                cfg, args.local, auxiliary=args.auxiliary, memory_budget=args.memory_budget
            )
        step = TrainingStep(cfg)
        _, channels, height, width = batch_shape(cfg)
        # Two images: batch norm on 1×1 maps needs more than one value.
        batch = synthetic_batch(step.model, (2, channels, height, width))
        network = name if len(names) > 1 else ''
        runs += [replace(run, network=network) for run in trace_auxiliary(step, batch)]
    title = args.title or (names[0] if len(names) == 1 else 'Auxiliary networks')
    draw_auxiliary(runs, out, args.modules, title)
    print(out)


if __name__ == '__main__':
    command_line.run(main)
