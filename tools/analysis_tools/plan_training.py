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

from rich.console import Console

from fba_mm import command_line
from fba_mm.analysis.step_configs import in_mixed_precision
from fba_mm.analysis.synthetic_batch import Shape, batch_shape
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.planning import plan_training
from fba_mm.planning.frontier_plot import draw_frontier

# As wide as the widest table, where no terminal says how wide it is.
WIDTH = 140


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Memory and time of the ways to train a config')
    parser.add_argument(
        'config', help='path of a stock config, or its name in a package (mmdet::retinanet/...)'
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
    parser.add_argument('--out', help='the picture (default: work_dirs/plan_training/<config>.png)')
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
    name = Path(args.config.split('::')[-1]).stem
    out = Path(args.out or f'work_dirs/plan_training/{name}.png')
    command_line.check_writable(out.parent, '--out')
    cfg = load_config(args.config)
    command_line.apply_cfg_options(cfg, args.cfg_options)
    cfg = in_mixed_precision(cfg, args.amp) if args.amp else cfg
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    shape = shape_from(args, *batch_shape(cfg))
    with console.status('simulating'):
        plan = plan_training(cfg, args.memory_budget, shape, console.print)
    plan.print(console)
    title = f'{name}, {"×".join(map(str, shape))}{", " + args.amp if args.amp else ""}'
    draw_frontier(plan.points(), out, title, budget=plan.budget)
    console.print(str(out), soft_wrap=True)


if __name__ == '__main__':
    command_line.run(main)
