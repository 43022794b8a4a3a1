r"""Draw the auxiliary networks of a config: layers, shapes and parameters up to each loss.

    python tools/analysis_tools/draw_auxiliary.py configs/classification/cifar10/resnet32_dgl.py
    python tools/analysis_tools/draw_auxiliary.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py \
        --local 4 --modules 1 3 --out slm.png

One training step is done on a synthetic batch: no data and no checkpoints are needed.
"""

import argparse
from pathlib import Path

from fba_mm import command_line
from fba_mm.analysis.auxiliary_plot import draw_auxiliary, trace_auxiliary
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.config import load_config
from fba_mm.localize import localize


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the auxiliary networks of a config')
    parser.add_argument('config', help='path of a config, or its name in a package (mmdet::...)')
    command_line.add_local(parser, 'a stock config')
    parser.add_argument('--modules', type=int, nargs='+', help='numbers of modules, from 1')
    parser.add_argument('--title', help="default: the config's name")
    parser.add_argument('--out', help='a PNG file (default: work_dirs/draw_auxiliary/<config>.png)')
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command_line.check_local(args)
    name = Path(args.config.split('::')[-1]).stem
    out = Path(args.out or f'work_dirs/draw_auxiliary/{name}.png')
    command_line.check_writable(out.parent, '--out')
    cfg = load_config(args.config)
    command_line.apply_cfg_options(cfg, args.cfg_options)
    if args.local is not None:
        cfg = localize(cfg, args.local, auxiliary=args.auxiliary, memory_budget=args.memory_budget)
    step = TrainingStep(cfg)
    _, channels, height, width = batch_shape(cfg)
    # Two images: batch norm on 1×1 maps needs more than one value.
    runs = trace_auxiliary(step, synthetic_batch(step.model, (2, channels, height, width)))
    draw_auxiliary(runs, out, args.modules, args.title or name)
    print(out)


if __name__ == '__main__':
    command_line.run(main)
