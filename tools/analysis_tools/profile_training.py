r"""Memory and time of a training step, of configs and of other ways to train the same models.

    python tools/analysis_tools/profile_training.py configs/retinanet_r50_fba.py --size 320
    python tools/analysis_tools/profile_training.py \
        mmpretrain::resnet/resnet50_8xb32_in1k.py --local 4 --batch 8

Trains on synthetic batches, from scratch: no data and no checkpoints are needed. Beside each config
stand back-propagation, activation checkpointing, gradient accumulation over single images, and the
forward pass with its loss alone. Peak: live tensors above parameters, buffers and optimizer state.
"""

import argparse
import sys
from pathlib import Path
from typing import List

from mmengine.config import Config
from rich.console import Console

from fba_mm import command_line
from fba_mm.analysis.baselines import BASELINES, in_mixed_precision, trains_locally
from fba_mm.analysis.memory_fit import resolve_num_modules
from fba_mm.analysis.profile_report import print_profile, save_profile
from fba_mm.analysis.synthetic_batch import Shape, batch_shape
from fba_mm.analysis.training_profile import check_device, profile_training
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import localize

# As wide as the widest table, where no terminal says how wide it is.
WIDTH = 120


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Memory and time of a training step',
        epilog='With several configs, each gets tables and a folder of its own.',
    )
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='config',
        help='path of a config, or its name in a package (mmdet::retinanet/...)',
    )
    command_line.add_local(parser, 'stock configs')
    parser.add_argument(
        '--twins',
        nargs='*',
        choices=list(BASELINES),
        default=list(BASELINES),
        help='what to compare with (default: all)',
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
        '--rounds', type=int, default=5, help='timed steps; 0 measures memory alone'
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
        help='folder for profile.json and memory.png (default: '
        'work_dirs/profile_training/<config>); with several configs, for a folder of each',
    )
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def configs_from(args: argparse.Namespace) -> List[Config]:
    """The configs as they shall be trained."""
    cfgs = []
    for config in args.configs:
        cfg = load_config(config)
        command_line.apply_cfg_options(cfg, args.cfg_options)
        cfg = in_mixed_precision(cfg, args.amp) if args.amp else cfg
        if args.local is not None and trains_locally(cfg):
            print(
                f'{config} trains locally already: --local {args.local} is for the others',
                file=sys.stderr,
            )
        elif args.local is not None:
            cfg = localize(
                cfg, args.local, auxiliary=args.auxiliary, memory_budget=args.memory_budget
            )
        cfgs.append(resolve_num_modules(cfg, shape_from(args, cfg)))
    return cfgs


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
        root = Path(args.out or 'work_dirs/profile_training')
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
    for config, cfg, folder in zip(args.configs, cfgs, folders):
        shape = shape_from(args, cfg)
        text = ', '.join(filter(None, ['×'.join(map(str, shape)), args.device, args.amp]))
        name = Path(config.split('::')[-1]).stem
        console.rule(f'{name}, {text}')
        if 'accumulation' in args.twins and shape[0] == 1:
            console.print('One image: accumulation over single images is back-propagation itself.')
        profiles = profile_training(
            cfg, shape, args.twins, args.device, args.rounds, report=console.print
        )
        print_profile(console, profiles, f'One training step, {text}')
        save_profile(
            profiles,
            folder,
            f'{name}\none training step, {text}',
            dict(
                config=config,
                shape=shape,
                device=args.device,
                amp=args.amp,
                local=args.local,
                cfg_options=args.cfg_options,
                rounds=args.rounds,
            ),
        )
        console.print(f'{folder / "profile.json"}\n{folder / "memory.png"}', soft_wrap=True)


if __name__ == '__main__':
    command_line.run(main)
