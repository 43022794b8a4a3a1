"""Evaluate a checkpoint; a local-learning config evaluates as its stock config does.

python tools/test.py configs/retinanet_r50_fba.py work_dirs/retinanet_r50_fba/epoch_12.pth
tools/dist_test.sh configs/retinanet_r50_fba.py work_dirs/retinanet_r50_fba/epoch_12.pth 8
"""

import argparse
import os

from mmengine.config import ConfigDict
from mmengine.evaluator import DumpResults

from fba_mm import command_line
from fba_mm.checkpoint import check_fit, guard_checkpoints
from fba_mm.config import settings_of, type_name
from fba_mm.distributed.processes import (
    check_agreement,
    init_processes,
    joint_errors,
    lost_processes,
)
from fba_mm.errors import LocalLearningError
from fba_mm.preflight.building import build_model, readable_errors
from fba_mm.preflight.data import check_data
from fba_mm.preflight.model_wrapper import choose_model_wrapper
from fba_mm.preflight.start import readable_start


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument(
        'config', help='path of a config, or its name in a package (mmdet::retinanet/...)'
    )
    parser.add_argument('checkpoint', help='checkpoint file, of this config or of its stock form')
    parser.add_argument('--out', help='write the predictions to this pickle file')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the file of --out if it is there'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='save painted images in this directory')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    command_line.add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise LocalLearningError(f'--out {args.out}: give a name that ends in .pkl')
    if args.out is not None:
        if os.path.exists(args.out) and not args.overwrite:
            raise LocalLearningError(
                f'--out {args.out} exists: choose another name, or pass --overwrite'
            )
        command_line.check_writable(os.path.dirname(args.out) or '.', '--out')
    guard_checkpoints(args.trust_checkpoint)
    cfg = command_line.config_from(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        visualization = (cfg.get('default_hooks') or {}).get('visualization')
        if visualization is None:
            raise LocalLearningError(
                '--show: default_hooks has no visualization hook, add it to the config'
            )
        visualization.update(draw=True, show=args.show, wait_time=args.wait_time)
        of_mmseg = type_name(visualization.get('type')) == 'SegVisualizationHook'
        if of_mmseg:
            visualization.interval = 1  # mmseg 1.2 draws every 50th batch, also in testing.
        if args.show_dir and of_mmseg:
            # It leaves the files to the visualizer.
            if cfg.get('visualizer') is None:
                raise LocalLearningError(
                    '--show-dir: the config has no visualizer, add one of type SegLocalVisualizer'
                )
            cfg.visualizer.save_dir = args.show_dir
        elif args.show_dir:
            visualization.test_out_dir = args.show_dir
    if cfg.get('test_dataloader') is None:
        raise LocalLearningError('the config has no test_dataloader: give a complete config')
    init_processes(cfg.launcher, (cfg.get('env_cfg') or {}).get('dist_cfg'))
    with joint_errors():
        choose_model_wrapper(cfg, training=False)
        check_data(cfg, 'test')
        check_fit(build_model(cfg), args.checkpoint, 'test', args.trust_checkpoint)
    check_agreement('config', settings_of(cfg))
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise LocalLearningError(
                '--tta: the config has no tta_model and tta_pipeline, add them'
            )
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline

    with readable_errors('testing cannot start'):
        runner = command_line.build_runner(cfg)
    with readable_errors(
        'test_dataloader or test_evaluator cannot be built', 'check its dataset and the data'
    ):
        _ = runner.test_loop  # Builds it.
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with readable_start(runner, 'the first image cannot be tested'), lost_processes():
        runner.test()


if __name__ == '__main__':
    command_line.run(main)
