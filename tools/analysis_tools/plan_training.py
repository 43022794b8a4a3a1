r"""The ways to train a config, with the memory and time that they take: a table and a picture.

    python tools/analysis_tools/plan_training.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
    python tools/analysis_tools/plan_training.py mmpretrain::resnet/resnet50_8xb32_in1k.py \
        --batch 256
    python tools/analysis_tools/plan_training.py mmdet::detr/detr_r50_8xb2-150e_coco.py \
        --memory-budget 8GB

Nothing is trained, no data and no checkpoints are needed, and no more memory than for the
parameters of small models: steps are simulated. Memory is that of a step's tensors, parameters and
optimizer state included; time is counted operations.
"""

import argparse
from pathlib import Path
from typing import Dict, List

from rich.console import Console

from fba_mm import command_line
from fba_mm.analysis.step_configs import in_mixed_precision
from fba_mm.analysis.synthetic_batch import Shape, batch_shape
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.planning import plan_training
from fba_mm.planning.frontier_plot import Point, draw_frontier
from fba_mm.planning.joint_frontier import draw_joint_frontier, joint_table

# As wide as the widest table, where no terminal says how wide it is.
WIDTH = 140


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Memory and time of the ways to train a config')
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='config',
        help='path of a stock config, or its name in a package (mmdet::retinanet/...); several are '
        'also shown together',
    )
    parser.add_argument(
        '--memory-budget',
        metavar='SIZE',
        help='also find what fits this: 8GB, 512MB, 10GiB; without it, the range is shown',
    )
    parser.add_argument('--batch', type=int, help='number of images (default: as the config)')
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='height and width of the images, one number if square (default: from the config)',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='bfloat16',
        choices=['bfloat16', 'float16'],
        help='automatic mixed precision, in bfloat16 unless float16 is asked for',
    )
    parser.add_argument(
        '--out',
        help='the picture (default: work_dirs/plan_training/<config>.png); with several configs, a '
        'folder for one of each and one of all',
    )
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def shape_from(
    args: argparse.Namespace, images: int, channels: int, height: int, width: int
) -> Shape:
    """The batch that was asked for, completed from the config."""
    numbers = [*(args.size or []), *([args.batch] * (args.batch is not None))]
    if any(number < 1 for number in numbers) or len(args.size or []) > 2:
        raise LocalLearningError(
            '--batch and --size take a number of images, and height and width in pixels: give '
            'positive ones, two at most for --size'
        )
    if args.size:
        height, width = args.size[0], args.size[-1]
    return args.batch or images, channels, height, width


def main() -> None:
    args = parse_args()
    names = [Path(config.split('::')[-1]).stem for config in args.configs]
    if len(set(names)) < len(names):
        raise LocalLearningError('two configs have the same name: plan them one by one')
    root = Path(args.out or 'work_dirs/plan_training')
    alone = args.out and len(names) == 1
    files = [root] if alone else [root / f'{name}.png' for name in names]
    command_line.check_writable(files[0].parent, '--out')
    cfgs = [load_config(config) for config in args.configs]
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    together: Dict[str, List[Point]] = {}
    for name, cfg, file in zip(names, cfgs, files):
        command_line.apply_cfg_options(cfg, args.cfg_options)
        cfg = in_mixed_precision(cfg, args.amp) if args.amp else cfg
        shape = shape_from(args, *batch_shape(cfg))
        with console.status(f'simulating {name}'):
            plan = plan_training(cfg, args.memory_budget, shape, console.print)
        plan.print(console)
        title = f'{name}, {"×".join(map(str, shape))}{", " + args.amp if args.amp else ""}'
        draw_frontier(plan.points(), file, title, budget=plan.budget)
        console.print(str(file), soft_wrap=True)
        together[name] = plan.points()
    if len(together) > 1:
        console.print(joint_table(together, 'Ways to train of least memory', 'as shipped'))
        draw_joint_frontier(together, root / 'frontier.png', 'Ways to train')
        console.print(str(root / 'frontier.png'), soft_wrap=True)


if __name__ == '__main__':
    command_line.run(main)
