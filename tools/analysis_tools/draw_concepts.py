"""Draw what the documentation explains, from the model itself: where it is cut, a step, the bank.

python tools/analysis_tools/draw_concepts.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py \
    --shape 2 3 256 256 --cfg-options model.backbone.frozen_stages=-1 \
    model.backbone.norm_eval=False model.backbone.init_cfg=None
"""

import argparse
from bisect import bisect_left
from pathlib import Path
from typing import Dict, List

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config

from fba_mm import command_line
from fba_mm.analysis import StepMemory, TrainingStep, measure_step
from fba_mm.analysis.memory_plot import COLOURS, MIB
from fba_mm.analysis.step_phases import marked_phases
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.config import load_config
from fba_mm.local import FeatureBank, LocalBackbone, find_local_backbone
from fba_mm.local.partition import StageMap
from fba_mm.localize import localize

# Where a map may come from: its colour, and how it is called.
SOURCES = {
    'module': (COLOURS[1], "the module's own"),
    'bank': (COLOURS[0], 'from the bank'),
    'made': ('#dddddd', "made by the module's SLM"),
    'both': ('#a8cfe6', 'made, and for half of the images the bank is added'),
    'blank': ('white', 'zeros'),
}


def draw_partition(backbone: LocalBackbone, out_file: Path) -> Figure:
    """What each block keeps for the backward pass, in the colour of its module.

    Args:
        backbone: A local backbone.
        out_file: A PNG file.
    """
    figure, axes = _figure(9, 3.4)
    kept = [one.saved_bytes / MIB for one in backbone.footprints]
    for number, module in enumerate(backbone.module_segments, 1):
        share = sum(kept[i] for i in module) / sum(kept)
        axes.bar(
            list(module),
            [kept[i] for i in module],
            color=COLOURS[(number - 1) % len(COLOURS)],
            label=f'module {number}: {share:.0%}',
        )
    names = [one.name for one in backbone.footprints]
    axes.set_xticks(range(len(names)), names, rotation=60, ha='right')
    axes.set_ylabel('kept for the backward pass\nof an image of 256×256 px [MiB]')
    axes.legend(ncols=len(backbone.module_segments), frameon=False, loc='upper right')
    axes.set_ylim(0, max(kept) * 1.2)
    return _save(figure, out_file)


def draw_steps(steps: Dict[str, StepMemory], out_file: Path) -> Figure:
    """Memory along a step, with what runs when; not by the clock, which depends on the machine.

    Args:
        steps: By name; measured within :func:`marked_phases`.
        out_file: A PNG file.
    """
    figure = Figure(figsize=(9, 2.4 * len(steps)), layout='constrained')
    top = 1.18 * max(step.peak_bytes for step in steps.values()) / MIB
    colours: Dict[str, str] = {}
    for axes, (name, step) in zip(figure.subplots(len(steps), squeeze=False)[:, 0], steps.items()):
        seconds = [second for second, _ in step.timeline]
        axes.plot([size / MIB for _, size in step.timeline], color='black', linewidth=1)
        starts = [bisect_left(seconds, second) for _, second in step.marks]
        for (phase, _), start, end in zip(step.marks, starts, [*starts[1:], len(seconds)]):
            owner = ' '.join(phase.split()[:2]) if phase.startswith('module') else 'the network'
            colours.setdefault(owner, COLOURS[len(colours) - 1] if colours else '#888888')
            dark = 0.5 if phase.endswith('backward') else 0.2
            axes.axvspan(start, end, color=colours[owner], alpha=dark, linewidth=0)
        axes.set_xlim(0, len(seconds))
        axes.set_ylim(0, top)
        axes.set_xticks([])
        axes.set_ylabel('memory [MiB]')
        axes.set_title(name, loc='left')
        _despine(axes)
    axes.set_xlabel('tensors made and freed, in order; pale: forward, dark: backward')
    figure.legend(
        handles=[Patch(color=colour, alpha=0.5, label=one) for one, colour in colours.items()],
        ncols=len(colours),
        loc='outside lower center',
        frameon=False,
    )
    return _save(figure, out_file)


def trace_bank(step: TrainingStep, batch: dict) -> List[Dict[int, str]]:
    """Where each module's head gets the maps from that it looks at.

    Args:
        step: Of a local config.
        batch: What it trains on.

    Returns:
        For each module but the last, by level, a key of :data:`SOURCES`. Levels that
        nothing looks at are left out.
    """
    backbone = find_local_backbone(step.model)
    found: List[Dict[int, str]] = []
    for auxiliary in backbone.auxiliary:

        def loss(x, levels, local_step, auxiliary=auxiliary):
            found.append(
                {
                    stage.level: _source(stage, auxiliary.cut_point.stage, levels, local_step.bank)
                    for stage in auxiliary.cut_point.levels
                    if stage.level not in local_step.unread
                }
            )
            return type(auxiliary).loss(auxiliary, x, levels, local_step)

        auxiliary.loss = loss
    step(batch)
    for auxiliary in backbone.auxiliary:
        del auxiliary.loss
    return found


def _source(stage: StageMap, own_stage: int, levels: dict, bank: FeatureBank) -> str:
    banked = bank.get(stage.level) is not None
    if stage.stage > own_stage:
        return 'both' if banked else 'made'
    if stage.level in levels or stage.stage == own_stage:
        return 'module'
    return 'bank' if banked else 'blank'


def draw_bank(banks: Dict[str, List[Dict[int, str]]], strides: List[int], out_file: Path) -> Figure:
    """For each scope of the bank, where each module's head gets its maps from.

    Args:
        banks: By scope, of :func:`trace_bank`.
        strides: Of the levels.
        out_file: A PNG file.
    """
    figure = Figure(figsize=(3 * len(banks), 2.8), layout='constrained')
    for axes, (scope, modules) in zip(
        figure.subplots(1, len(banks), squeeze=False)[0], banks.items()
    ):
        levels = sorted({level for module in modules for level in module})
        for row, module in enumerate(modules):
            for column, level in enumerate(levels):
                axes.add_patch(
                    Rectangle(
                        (column, row),
                        0.94,
                        0.9,
                        facecolor=SOURCES[module[level]][0],
                        edgecolor='.7',
                    )
                )
        axes.set_xlim(0, len(levels))
        axes.set_ylim(len(modules), 0)
        axes.set_xticks([i + 0.47 for i in range(len(levels))], [strides[one] for one in levels])
        axes.set_yticks(
            [i + 0.45 for i in range(len(modules))],
            [f'module {i + 1}' for i in range(len(modules))],
        )
        axes.set_xlabel('stride of the map [px]')
        axes.set_title(f"scope='{scope}'")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor='.7', label=text)
            for kind, (colour, text) in SOURCES.items()
            if any(kind in one.values() for modules in banks.values() for one in modules)
        ],
        ncols=3,
        loc='outside lower center',
        frameon=False,
    )
    return _save(figure, out_file)


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots()
    _despine(axes)
    return figure, axes


def _despine(axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)


def _save(figure: Figure, out_file: Path) -> Figure:
    out_file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(out_file, dpi=150)
    return figure


def draw(stock: Config, num_modules, shape: tuple, out: Path) -> List[Path]:
    """Draw all three.

    Args:
        stock: A stock config.
        num_modules: As of :func:`localize`.
        shape: (images, channels, height, width).
        out: A folder.

    Returns:
        The files.
    """
    files = [out / f'{name}.png' for name in ('partition', 'step', 'bank')]
    measured, banks = {}, {}
    for name, cfg in {
        'back-propagation': stock,
        f'local learning, K = {num_modules}': localize(stock, num_modules),
    }.items():
        torch.manual_seed(0)
        step = TrainingStep(cfg)
        batch = synthetic_batch(step.model, shape)
        step(batch)
        with marked_phases(step.model, step.optim_wrapper):
            measured[name] = measure_step(lambda step=step, batch=batch: step(batch))
    draw_steps(measured, files[1])
    draw_partition(find_local_backbone(step.model), files[0])
    # With a module for each stage, each makes one of the maps.
    for scope in ('off', 'past', 'all'):
        step = TrainingStep(localize(stock, 'stages', scope=scope))
        banks[scope] = trace_bank(step, batch)
    point = find_local_backbone(step.model).auxiliary[0].cut_point
    draw_bank(banks, [stage.stride for stage in point.levels], files[2])
    return files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw partition, step and feature bank')
    parser.add_argument('config', help='path of a stock config, or its name in a package')
    parser.add_argument('--local', type=command_line.module_count, default=4, metavar='K')
    parser.add_argument(
        '--shape', type=int, nargs=4, default=(2, 3, 320, 320), metavar=('N', 'C', 'H', 'W')
    )
    parser.add_argument('--out', default='docs/images/concepts', help='a folder')
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command_line.check_writable(args.out, '--out')
    cfg = load_config(args.config)
    command_line.apply_cfg_options(cfg, args.cfg_options)
    for file in draw(cfg, args.local, tuple(args.shape), Path(args.out)):
        print(file)


if __name__ == '__main__':
    command_line.run(main)
