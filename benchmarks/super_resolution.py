r"""Image quality of super-resolution: back-propagation and local learning at equal iterations.

    python tools/dataset_converters/build_photo_pairs.py data/Set5 --images FOLDER      # and Set14
    python tools/dataset_converters/build_photo_pairs.py data/sr_train --images FOLDER \
        --tile-size 192
    python benchmarks/super_resolution.py --train data/sr_train --test data/Set5 data/Set14 \
        --batch 8 --variants BP "K=4" --seeds 0 1 2 --search

Trains EDSR ×2 (16 blocks, 64 channels) in each variant with each seed, and goes on where it
stopped. With ``--search`` each first gets a learning rate of its own, chosen on photos held out of
the training set (``search.json``, ``search.md``). Without ``--train`` and ``--test``, on the photos
that scikit-image and scikit-learn install. Ends with a table (PSNR and SSIM on Y and on RGB),
``table.md`` and ``results.json``.
"""

import argparse
import copy
import json
import re
import statistics
from pathlib import Path
from typing import Dict

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from option_search import RateSearch, add_search_arguments, grid, hold_out
from PIL import Image
from rich.console import Console
from rich.table import Table
from seeded_trainings import (
    ROOT,
    Results,
    file_name,
    markdown,
    run_all,
    scalars,
    spread,
    train,
)

from fba_mm import command_line
from fba_mm.config import load_config

from mmagic.evaluation import PSNR, SSIM  # isort: skip  # fba_mm makes it importable

BASE = ROOT / 'configs/super_resolution'
# Options of LocalBackbone and of its auxiliary networks.
VARIANTS = {
    'BP': None,
    'K=4': dict(num_modules=4),
    'K=2': dict(num_modules=2),
    'blocks': dict(num_modules='blocks'),
    'K=4, shared head': dict(num_modules=4, auxiliary=dict(head='shared')),
    'K=4, 32 channels': dict(num_modules=4, auxiliary=dict(channels=32)),
    'K=4, no residual': dict(num_modules=4, auxiliary=dict(residual='network')),
    'K=4, bilinear residual': dict(num_modules=4, auxiliary=dict(residual='bilinear')),
    'K=4, first map': dict(num_modules=4, auxiliary=dict(skip=True)),
    'K=4, first map, no residual': dict(
        num_modules=4, auxiliary=dict(skip=True, residual='network')
    ),
    'K=4, loss weight 0.1': dict(num_modules=4, auxiliary=dict(loss_weight=0.1)),
    'blocks, shared head': dict(num_modules='blocks', auxiliary=dict(head='shared')),
}
METRICS = ('PSNR', 'SSIM')
CHANNELS = {'': None, '_Y': 'Y'}


def config(args: argparse.Namespace, variant: str, seed: int, lr: float) -> Config:
    """One training's config.

    Args:
        args: Of the command line.
        variant: A key of ``VARIANTS``.
        seed: What chance starts from.
        lr: Learning rate.
    """
    options = VARIANTS[variant]
    cfg = load_config(str(BASE / f'edsr_x2_{"bp" if options is None else "fba"}.py'))
    cfg.randomness = dict(seed=seed)
    cfg.custom_hooks = []  # no pictures of every test image
    if options is not None:
        cfg.custom_hooks.append(dict(type='FBAHook'))
        cfg.model.generator.update(options)
    cfg.train_cfg.update(max_iters=args.iterations, val_interval=args.iterations)
    cfg.param_scheduler.T_max = args.iterations
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=True)
    cfg.default_hooks.logger.interval = min(20, args.iterations)
    loader = cfg.train_dataloader
    loader.batch_size = args.batch
    loader.dataset.data_root = str(args.train)
    (crop,) = (step for step in loader.dataset.pipeline if step.type == 'PairedRandomCrop')
    crop.gt_patch_size = 2 * args.patch
    test_set = cfg.val_dataloader
    cfg.val_dataloader = cfg.test_dataloader = [
        dict(
            test_set, persistent_workers=False, dataset=dict(test_set.dataset, data_root=str(path))
        )
        for path in args.test
    ]
    cfg.val_evaluator = cfg.test_evaluator = [
        dict(
            type='Evaluator',
            metrics=[
                dict(type=metric, crop_border=2, prefix=path.name + suffix, convert_to=channel)
                for suffix, channel in CHANNELS.items()
                for metric in METRICS
            ],
        )
        for path in args.test
    ]
    return cfg


def held_out(cfg: Config, folder: Path) -> Config:
    """A config that is validated on whole photos of its training set, and never tested."""
    cfg = copy.deepcopy(cfg)
    for key in ('val_dataloader', 'val_evaluator', 'test_dataloader', 'test_evaluator'):
        cfg[key] = cfg[key][0]
    # Tiles are numbered: photo_007.png.
    cfg = hold_out(cfg, folder, whole=lambda name: re.sub(r'_\d{3}\.png$', '', name))
    for metric in cfg.val_evaluator.metrics:
        metric.prefix = 'held_out' + ('_Y' if metric.convert_to else '')
    cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
    for key in ('val_dataloader', 'val_evaluator', 'test_dataloader', 'test_evaluator'):
        cfg[key] = [cfg[key]]
    return cfg


def figures(work_dir: Path) -> dict:
    """What a training reached in the end, and the median time of its iterations."""
    logged = scalars(work_dir)
    found = next(line for line in reversed(logged) if any(key.endswith('PSNR') for key in line))
    seconds = [line['time'] for line in logged if 'lr' in line]
    return dict(
        {key: value for key, value in found.items() if key.endswith(METRICS)},
        seconds_per_iteration=statistics.median(seconds),
    )


def bicubic(folder: Path) -> Dict[str, float]:
    """What interpolation alone reaches on a test set."""
    found = {}
    for suffix, channel in CHANNELS.items():
        for name, kind in (('PSNR', PSNR), ('SSIM', SSIM)):
            metric = kind(crop_border=2, convert_to=channel, input_order='HWC')
            metric.channel_order = 'rgb'
            values = []
            for path in sorted((folder / 'GTmod12').glob('*.png')):
                truth = Image.open(path)
                small = Image.open(folder / 'LRbicx2' / path.name)
                values.append(
                    metric.process_image(
                        np.asarray(truth), np.asarray(small.resize(truth.size, Image.BICUBIC)), None
                    )
                )
            found[f'{folder.name}{suffix}/{name}'] = float(np.mean(values))
    return found


def print_table(
    results: Results, rates: Dict[str, float], args: argparse.Namespace, console: Console
) -> str:
    """Print what was found; returns it as Markdown too."""
    names = [
        f'{path.name}{suffix}/{metric}'
        for path in args.test
        for suffix in ('_Y', '')
        for metric in METRICS
    ]
    columns = [
        '',
        'lr',
        *(name.replace('_Y/', ' Y ').replace('/', ' RGB ') for name in names),
        'time / BP',
    ]
    base = [value for path in args.test for value in bicubic(path).items()]
    rows = [['bicubic', '–', *(f'{dict(base)[name]:.{_digits(name)}f}' for name in names), '–']]
    seconds = {
        variant: statistics.median(one['seconds_per_iteration'] for one in by_seed.values())
        for variant, by_seed in results.items()
    }
    for variant, by_seed in results.items():
        ratio = f'{seconds[variant] / seconds["BP"]:.2f}' if 'BP' in seconds else '–'
        rows.append(
            [
                variant,
                f'{rates[variant]:g}',
                *(spread([one[name] for one in by_seed.values()], _digits(name)) for name in names),
                ratio,
            ]
        )
    title = (
        f'EDSR x2, {args.iterations} iterations of {args.batch} patches of '
        f'{args.patch}x{args.patch}, last iteration, seeds {args.seeds}, {get_device()}, '
        + ('lr of each chosen on held-out training photos' if args.search else f'lr {args.lr}')
    )
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = ['| ' + ' | '.join(row) + ' |' for row in [columns, ['---'] * len(columns), *rows]]
    return f'{title}\n\n' + '\n'.join(lines) + '\n'


def _digits(name: str) -> int:
    return 2 if name.endswith('PSNR') else 4


def main() -> None:
    parser = argparse.ArgumentParser(description='Image quality of super-resolution')
    parser.add_argument('--train', type=Path, default=Path('data/photo_pairs/train'))
    parser.add_argument('--test', type=Path, nargs='+', default=[Path('data/photo_pairs/val')])
    parser.add_argument('--variants', nargs='+', choices=list(VARIANTS), default=['BP', 'K=4'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--iterations', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--patch', type=int, default=24, help='low-resolution side in px')
    parser.add_argument('--lr', type=float, default=5e-4)
    add_search_arguments(parser)
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/super_resolution')
    args = parser.parse_args()
    console = Console()
    tests = '_'.join(path.name for path in args.test)
    budget = file_name(f'{args.train.name}_{tests}_{args.iterations}_{args.batch}_{args.patch}')
    out = args.out / budget
    rates = dict.fromkeys(args.variants, args.lr)

    def folder_of(variant: str, lr: float) -> Path:
        return out / file_name(variant) / f'lr_{lr:g}'

    def one(variant: str, seed: int) -> dict:
        lr = rates[variant]
        folder = folder_of(variant, lr) / f'seed_{seed}'
        return train(folder, config(args, variant, seed, lr), figures)

    def validation(variant: str, lr: float, seed: int) -> dict:
        cfg = held_out(config(args, variant, seed, lr), out)
        folder = folder_of(variant, lr) / 'held_out' / f'seed_{seed}'
        return train(folder, cfg, figures, may_diverge=True)

    def say(found: dict) -> str:
        if found.get('diverged'):
            return 'diverged'
        return ', '.join(f'{key} {value:.2f}' for key, value in found.items() if 'Y/PSNR' in key)

    if args.search:
        search = RateSearch(
            grid(args.lr, args.rates),
            'held_out_Y/PSNR',
            f'EDSR x2, {args.iterations} iterations, one in five training photos held out, seeds '
            f'{args.search_seeds}: PSNR on Y, dB',
            args.extensions,
            args.search_seeds,
            digits=2,
        )
        search.run(args.variants, validation, say, args.jobs, console)
        search.write(out)
        console.print(markdown(search.table()))
        rates = search.chosen()
    results = run_all(args.variants, args.seeds, one, say, args.jobs, console)
    text = print_table(results, rates, args, console)
    (out / 'table.md').write_text(text)
    (out / 'results.json').write_text(json.dumps(dict(results=results, lr=rates), indent=1))
    console.print(f'{out}/table.md, results.json')


if __name__ == '__main__':
    command_line.run(main)
