"""Train a model by local learning, or any model of an OpenMMLab config.

python tools/train.py configs/retinanet_r50_fba.py
python tools/train.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py --local 4
python tools/train.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py --memory-budget 4GB
python tools/train.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py --checkpoint 3
tools/dist_train.sh configs/retinanet_r50_fba.py 8
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Optional, Tuple

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich.console import Console

from fba_mm import command_line
from fba_mm.analysis.memory_fit import resolve_num_modules
from fba_mm.checkpoint import check_fit, find_resumable, guard_checkpoints
from fba_mm.config import settings_of
from fba_mm.distributed.processes import (
    check_agreement,
    check_equal_data,
    from_first_process,
    init_processes,
    joint_errors,
    lost_processes,
)
from fba_mm.engine.iteration_seed_hook import add_iteration_seeds
from fba_mm.engine.work_dir_lock import work_dir_lock
from fba_mm.errors import LocalLearningError
from fba_mm.localize import localize, localize_optimizer
from fba_mm.planning import plan_training
from fba_mm.planning.out_of_memory import next_way_when_out_of_memory
from fba_mm.preflight.building import build_model, readable_errors
from fba_mm.preflight.model_wrapper import choose_model_wrapper
from fba_mm.preflight.start import build_loops, readable_start
from fba_mm.preflight.training import check_training, use_atomic_checkpoints


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument(
        'config', help='path of a config, or its name in a package (mmdet::retinanet/...)'
    )
    command_line.add_local(parser, "the config's backbone")
    parser.add_argument(
        '--exact-from',
        type=float,
        metavar='SHARE',
        help='with --local, end it after this share of the training (0.7, for one), and train the '
        'whole network by back-propagation from there on, its backbone recomputed',
    )
    command_line.add_exact(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value, from the last usable one in the work '
        'directory, if there is one',
    )
    command_line.add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command_line.check_local(args, budget_alone=True)
    guard_checkpoints(args.trust_checkpoint)
    cfg = command_line.config_from(args)
    init_processes(cfg.launcher, (cfg.get('env_cfg') or {}).get('dist_cfg'))
    with joint_errors():
        cfg = settle(cfg, args)
        model = build_model(cfg)
        optim_wrapper = check_training(cfg, model)
        start = starting_point(cfg, args) if is_main_process() else None
    cfg.load_from, cfg.resume = from_first_process(start)
    check_agreement('config', settings_of(cfg))
    check_out_dirs(cfg)
    if cfg.get('load_from'):
        with joint_errors():
            check_fit(
                model,
                cfg.load_from,
                'resume' if cfg.get('resume') else 'load',
                args.trust_checkpoint,
                getattr(optim_wrapper, 'optimizer', None),
            )
    del model, optim_wrapper
    with work_dir_lock(cfg.work_dir):
        train(cfg)


def train(cfg: Config) -> None:
    """Train a config that was found fit for it."""
    with readable_errors('training cannot start'):
        runner = command_line.build_runner(cfg)
    # Building the loops reads the annotations: faults in them shall be found here.
    with joint_errors():
        build_loops(runner)
    # FBAHook has nothing to check again.
    runner.is_checked = True
    check_equal_data(runner)
    load_or_resume = runner.load_or_resume

    def readable_load_or_resume() -> None:
        with readable_errors(f'cannot start from {cfg.load_from}', 'give another checkpoint'):
            load_or_resume()

    # Called when all that a checkpoint goes into is built.
    runner.load_or_resume = readable_load_or_resume
    with lost_processes(), readable_start(runner), next_way_when_out_of_memory(cfg):
        runner.train()


def fit_budget(cfg: Config, memory_budget: str) -> Config:
    """The config in the way to train that fits a budget, with the table of ways printed."""
    console = Console()
    if not is_main_process():
        console.quiet = True
    elif not console.is_terminal:
        console = Console(width=140)
    plan = plan_training(cfg, memory_budget, report=partial(console.print, soft_wrap=True))
    if plan.chosen is None:
        console.print(plan.table())
        raise LocalLearningError(plan.refusal())
    plan.print(console)
    cfg = plan.chosen.way.configure(cfg)
    localize_optimizer(cfg)
    return cfg


def check_out_dirs(cfg: Config) -> None:
    """Find out before training whether checkpoints can be saved where the config wants them."""
    for name, hook in cfg.default_hooks.items():
        out_dir = hook.get('out_dir') if isinstance(hook, dict) else None
        if out_dir and '://' not in str(out_dir):
            # MMEngine's hooks make a folder in it that is called as the work directory.
            folder = os.path.join(out_dir, os.path.basename(os.path.abspath(cfg.work_dir)))
            command_line.check_writable(folder, f'default_hooks.{name}.out_dir')


def settle(cfg: Config, args: argparse.Namespace) -> Config:
    """The config with all that the arguments ask for."""
    if args.amp and cfg.get('optim_wrapper') is not None:
        local = 'Local' in str(cfg.optim_wrapper.get('type', 'OptimWrapper'))
        cfg.optim_wrapper.type = 'AmpLocalOptimWrapper' if local else 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    # With precision and data settled, 'auto' knows what has to fit.
    if args.local is not None:
        if args.checkpoint_head:
            raise LocalLearningError(
                '--checkpoint-head goes without --local: --checkpoint recomputes within each module'
            )
        if args.exact_from is not None and args.memory_budget is not None:
            raise LocalLearningError(
                '--exact-from goes without --memory-budget, which plans for local learning alone: '
                'give a number of modules, and see what --checkpoint 3 takes'
            )
        cfg = localize(
            cfg,
            num_modules=args.local,
            auxiliary=args.auxiliary,
            memory_budget=args.memory_budget,
            recompute=args.checkpoint,
            slices=not args.no_slices,
            exact_from=args.exact_from,
        )
    elif args.memory_budget is not None:
        cfg = fit_budget(cfg, args.memory_budget)
    else:
        localize_optimizer(cfg)
        cfg = command_line.apply_exact(cfg, args)
    cfg = resolve_num_modules(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise LocalLearningError(
                '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, set it'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, args.resume
    choose_model_wrapper(cfg)
    use_atomic_checkpoints(cfg)
    add_iteration_seeds(cfg)
    return cfg


def starting_point(cfg: Config, args: argparse.Namespace) -> Tuple[Optional[str], bool]:
    """The checkpoint that training starts from, and whether it goes on with that training.

    A restart by torchrun, after a process was lost, goes on with what this job has saved.
    """
    load_from, resume = cfg.get('load_from'), bool(cfg.get('resume'))
    stamp = Path(cfg.work_dir, '.job_started')
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0
    looks = args.resume == 'auto' or resume and not load_from
    if not restarted and int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0')) > 0:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    if not (looks or restarted):
        return load_from, resume
    # What others have left in the folder is not this job's, unless it was told to go on with it.
    since = stamp.stat().st_mtime if restarted and not looks and stamp.exists() else 0.0
    found = find_resumable(cfg.work_dir, args.trust_checkpoint, since)
    if found is not None:
        return found, True
    if load_from:
        print_log(f'Starting from {load_from} instead', 'current')
    return load_from, resume and bool(load_from)


if __name__ == '__main__':
    command_line.run(main)
