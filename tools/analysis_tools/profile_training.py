r"""Memory and time of a training step, of configs and of other ways to train the same models.

    python tools/analysis_tools/profile_training.py configs/retinanet_r50_fba.py --size 320
    python tools/analysis_tools/profile_training.py \
        mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --local 4 8 blocks --auxiliary light pooled

Trains on synthetic batches, from scratch: no data and no checkpoints are needed. Beside each config
stand back-propagation, activation checkpointing, gradient accumulation over single images where
that is exact, and the forward pass with its loss alone. Peak: live tensors above parameters,
buffers and optimizer state. Two pictures: memory over time of all ways, and along their steps.
Several configs also get a table and, with timed steps, a picture together.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Dict, List

from mmengine.config import Config
from rich.console import Console

from fba_mm import command_line
from fba_mm.analysis.memory_fit import resolve_num_modules
from fba_mm.analysis.profile_report import print_profile, save_profile
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import backbone_of, in_mixed_precision, trains_locally
from fba_mm.analysis.synthetic_batch import Shape, batch_shape
from fba_mm.analysis.training_profile import VariantProfile, check_device, profile_training
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import localize
from fba_mm.planning.baselines import BASELINES, baselines
from fba_mm.planning.frontier_plot import Point, draw_frontier
from fba_mm.planning.joint_frontier import draw_joint_frontier, joint_table
from fba_mm.planning.ways import Way, local_way
from fba_mm.tasks import task_of

# What a config is compared with unless the user says otherwise.
DEFAULT_BASELINES = ['bp', 'checkpointing', 'accumulation', 'forward']
# As wide as the widest table, where no terminal says how wide it is.
WIDTH = 120
# Where a folder of each config comes to lie.
ROOT = 'work_dirs/profile_training'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Memory and time of a training step',
        epilog='With several configs, each gets tables and a folder of its own, all one together.',
    )
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='config',
        help='path of a config, or its name in a package (mmdet::retinanet/...)',
    )
    command_line.add_local(parser, 'stock configs', several=True)
    parser.add_argument(
        '--twins',
        nargs='*',
        choices=list(BASELINES),
        default=DEFAULT_BASELINES,
        help=f'what to compare with (default: {" ".join(DEFAULT_BASELINES)}); slices: losses in '
        'slices, images: checkpointing image by image',
    )
    parser.add_argument(
        '--shape',
        nargs=4,
        type=int,
        metavar=('N', 'C', 'H', 'W'),
        help="the batch (default: as the config's train pipeline makes it; 2 3 256 256 where it "
        "doesn't say)",
    )
    parser.add_argument('--batch', type=int, help='number of images, instead of --shape')
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='height and width of the images, one number if they are square, instead of --shape',
    )
    parser.add_argument(
        '--rounds', type=int, default=3, help='timed steps; 0 measures memory alone'
    )
    parser.add_argument(
        '--details',
        action='store_true',
        help='also print what peaks consist of, and the peak of each local module',
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--amp',
        nargs='?',
        const='bfloat16',
        choices=['bfloat16', 'float16'],
        help='automatic mixed precision, in bfloat16 unless float16 is asked for',
    )
    parser.add_argument(
        '--out',
        help='folder for profile.json, memory.png and, with timed steps, frontier.png (default: '
        'work_dirs/profile_training/<config>); with several configs, for a folder of each',
    )
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def configs_from(args: argparse.Namespace) -> List[Config]:
    """The configs, in the precision that was asked for."""
    cfgs = []
    for config in args.configs:
        cfg = load_config(config)
        command_line.apply_cfg_options(cfg, args.cfg_options)
        cfg = in_mixed_precision(cfg, args.amp) if args.amp else cfg
        if args.local is not None and trains_locally(cfg):
            print(
                f'{config} trains locally already: --local {command_line.words(args.local)} is for '
                'the others',
                file=sys.stderr,
            )
        cfgs.append(resolve_num_modules(cfg, shape_from(args, cfg)))
    return cfgs


def local_ways_from(args: argparse.Namespace, cfg: Config, shape: Shape) -> List[Way]:
    """The local ways that were asked for: each number of modules with each kind of heads."""
    if args.local is None or trains_locally(cfg):
        return []
    found = []
    for heads in args.auxiliary or [None]:
        for number in args.local:
            if number == 'auto':
                local = localize(cfg, 'auto', auxiliary=heads, memory_budget=args.memory_budget)
                number = backbone_of(resolve_num_modules(local, shape)).num_modules
            found.append(local_way(task_of(cfg), heads, number))
    return found


def folders_from(args: argparse.Namespace) -> List[Path]:
    """Where to write what is found of each config."""
    names = [Path(config.split('::')[-1]).stem for config in args.configs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise LocalLearningError(
            f'several configs are named {", ".join(sorted(twice))}: profile them one by one, each '
            'with its --out'
        )
    if args.out and len(names) == 1:
        folders = [Path(args.out)]
    else:
        root = Path(args.out or ROOT)
        folders = [root / name for name in names]
    for folder in folders:
        command_line.check_writable(folder, '--out')
    return folders


def shape_from(args: argparse.Namespace, cfg: Config) -> Shape:
    """The batch that was asked for, completed from the config."""
    if args.shape is not None:
        return tuple(args.shape)
    images, channels, height, width = batch_shape(cfg)
    if args.size is not None:
        height, width = args.size[0], args.size[-1]
    return (images if args.batch is None else args.batch), channels, height, width


def check_args(args: argparse.Namespace) -> None:
    """Refuse what doesn't fit together, before anything is built."""
    if args.shape is not None and (args.batch is not None or args.size is not None):
        raise LocalLearningError('--shape says it all: leave out --batch and --size')
    numbers = [*(args.shape or []), *(args.size or []), *([args.batch] * (args.batch is not None))]
    if any(number < 1 for number in numbers):
        raise LocalLearningError(
            '--shape, --batch and --size take numbers of images, channels and pixels: give '
            'positive ones'
        )
    if len(args.size or []) > 2:
        raise LocalLearningError('--size takes height and width: give one number or two')
    if args.rounds < 0:
        raise LocalLearningError(f'--rounds {args.rounds}: give 0 or more')
    command_line.check_local(args)
    check_device(args.device)


def main() -> None:
    args = parse_args()
    check_args(args)
    folders, cfgs = folders_from(args), configs_from(args)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    together: Dict[str, List[Point]] = {}
    for config, cfg, folder in zip(args.configs, cfgs, folders):
        shape = shape_from(args, cfg)
        text = ', '.join(filter(None, ['×'.join(map(str, shape)), args.device, args.amp]))
        name = Path(config.split('::')[-1]).stem
        console.rule(f'{name}, {text}')
        with quiet():
            variants = baselines(cfg, shape[0], args.twins, local_ways_from(args, cfg, shape))
        profiles = profile_training(
            variants, shape, args.device, args.rounds, partial(console.print, soft_wrap=True)
        )
        print_profile(console, profiles, f'One training step, {text}', args.details)
        title = f'{name}\none training step, {text}'
        setting = dict(
            config=config,
            shape=shape,
            device=args.device,
            amp=args.amp,
            local=args.local,
            auxiliary=args.auxiliary,
            cfg_options=args.cfg_options,
            rounds=args.rounds,
        )
        save_profile(profiles, folder, title, setting)
        written = ['profile.json', 'memory.png']
        if args.rounds:
            draw_profile(profiles, folder / 'frontier.png', title)
            written.append('frontier.png')
        console.print('\n'.join(str(folder / file) for file in written), soft_wrap=True)
        together[name] = points_of(profiles)
    if len(together) > 1:
        show_together(console, together, Path(args.out or ROOT), bool(args.rounds))


def points_of(profiles: List[VariantProfile]) -> List[Point]:
    """The ways to train in which steps were profiled, back-propagation first."""
    trained = [one for one in profiles if one.kind != 'forward']
    return [
        Point(one.name, one.is_exact, one.median_seconds or math.nan, one.total)
        for one in sorted(trained, key=lambda one: one.kind != 'bp')
    ]


def show_together(
    console: Console, configs: Dict[str, List[Point]], folder: Path, timed: bool
) -> None:
    """One table of all configs, and one picture where steps were timed."""
    first = {points[0].name for points in configs.values()}
    shipped = first.pop() if len(first) == 1 else 'the first way'
    title = 'A training step, peak with parameters and state'
    console.print(joint_table(configs, title, shipped))
    if timed:
        draw_joint_frontier(
            configs, folder / 'frontier.png', 'A training step', shipped, 'time of a step'
        )
        console.print(str(folder / 'frontier.png'), soft_wrap=True)


def draw_profile(profiles: List[VariantProfile], out_file: Path, title: str) -> None:
    """Draw memory over time of what was timed, the forward pass alone aside."""
    trained = [one for one in profiles if one.kind != 'forward']
    bp = next((one for one in trained if one.kind == 'bp'), None)
    unit = 1.0 if bp is None else bp.median_seconds
    points = [
        Point(one.name, one.is_exact, one.median_seconds / unit, one.total) for one in trained
    ]
    x_label = 'time of a step [s]' if bp is None else "time of a step / BP's"
    draw_frontier(points, out_file, title, x_label, 'peak, parameters and state [MiB]')


if __name__ == '__main__':
    command_line.run(main)
