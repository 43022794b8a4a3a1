"""Turn a local-learning checkpoint into one of the stock config.

python tools/export.py configs/retinanet_r50_fba.py work_dirs/.../epoch_12.pth retinanet.pth
"""

import argparse
import os

from fba_mm import command_line
from fba_mm.checkpoint import (
    check_fit,
    export_checkpoint,
    guard_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import stock_form
from fba_mm.preflight.building import build_model
from fba_mm.preflight.config_types import check_types


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a local-learning checkpoint')
    parser.add_argument('config', help='the local-learning config of the checkpoint')
    parser.add_argument('checkpoint', help='the checkpoint to export')
    parser.add_argument('out', help='where to write it')
    parser.add_argument('--out-config', help='also write the stock config that it belongs to')
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load the checkpoint even if that runs code from it; only if you know its author',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for path in filter(None, (args.out, args.out_config)):
        if os.path.exists(path) and not args.overwrite:
            raise LocalLearningError(f'{path} exists: choose another name, or pass --overwrite')
    if args.out_config and not args.out_config.endswith('.py'):
        raise LocalLearningError(f'--out-config {args.out_config}: give a name that ends in .py')
    guard_checkpoints(args.trust_checkpoint)
    cfg = load_config(args.config)
    check_types(cfg)
    # Nothing is downloaded for a model whose weights come from the checkpoint.
    model = build_model(cfg)
    check_fit(model, args.checkpoint, 'test', args.trust_checkpoint)
    exported = export_checkpoint(model, read_checkpoint(args.checkpoint, args.trust_checkpoint))
    stock = stock_form(cfg)
    try:
        build_model(stock).load_state_dict(exported['state_dict'], strict=True)
    except RuntimeError as error:
        raise LocalLearningError(
            f'checkpoint {args.checkpoint} does not fit the stock model '
            f'({" ".join(str(error).split())[:300]}): give the config that it was trained with'
        ) from error
    write_checkpoint(exported, args.out)
    print(f'{args.out}: {len(exported["state_dict"])} entries, loads strictly into the stock model')
    if args.out_config:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(args.out_config)), exist_ok=True)
            stock.dump(args.out_config)
        except OSError as error:
            raise LocalLearningError(
                f'cannot write {args.out_config} ({error.strerror}): give another path'
            ) from error
        print(f'{args.out_config}: the stock config')


if __name__ == '__main__':
    command_line.run(main)
