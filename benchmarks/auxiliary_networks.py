"""What cheaper auxiliary networks cost in accuracy: several seeds of the demo's training.

    python benchmarks/auxiliary_networks.py [--seeds 0 1 2] [--jobs 2] [--variants ...]

Trains the demo's RetinaNet on digits by back-propagation and by FBA with auxiliary networks of
several prices, one thread for each training. Goes on where it stopped: a run whose result lies in
``--out`` is not done again. Ends with a table: COCO mAP and AP50 of every seed, their mean and
standard deviation, and the time of a step.
"""

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeded_trainings import ROOT, file_name, run_all, scalars, spread, train

from fba_mm import command_line

BP = 'configs/demo/retinanet_r34_digits.py'
FBA = 'configs/demo/retinanet_r34_fba_digits.py'


def slm(**settings) -> list:
    """Overrides for an SLM with blocks."""
    return [('auxiliary', dict(_delete_=True, type='SLM', **settings))]


def light(channels: int) -> list:
    """Overrides for an own head per module, one anchor per position."""
    head = dict(
        type='LightRetinaNet',
        num_classes=10,
        channels=channels,
        octave_base_scale=2,
        ratios=[1.4],
        strides=[8, 16, 32, 64],
        neck=dict(start_level=0, num_outs=4, add_extra_convs='on_output'),
    )
    return slm(channels=channels, head=head)


VARIANTS = {
    'BP': (BP, []),
    'FBA, pooled, shared head': (FBA, []),
    'FBA, SLM, shared head': (FBA, slm()),
    'FBA, own light head, 16 channels': (FBA, light(16)),
    'FBA, own light head, 32 channels': (FBA, light(32)),
}


def config(base: str, backbone: list, seed: int, epochs: int) -> str:
    """The text of one training's config."""
    lines = [f'_base_ = {str(ROOT / base)!r}', f'randomness = dict(seed={seed})']
    if backbone:
        settings = ', '.join(f'{key}={value!r}' for key, value in backbone)
        lines.append(f'model = dict(backbone=dict({settings}))')
    lines.append(f'max_epochs = {epochs}')
    lines.append(f'train_cfg = dict(max_epochs={epochs}, val_interval={epochs})')
    lines.append(
        "param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, "
        f"end=50), dict(type='CosineAnnealingLR', eta_min=1e-5, begin=0, T_max={epochs}, "
        'by_epoch=True, convert_to_iter_based=True)]'
    )
    return '\n'.join(lines) + '\n'


def figures(work_dir: Path) -> dict:
    """What a training reached, and the median time of its steps."""
    logged = scalars(work_dir)
    last = [line for line in logged if 'coco/bbox_mAP' in line][-1]
    return dict(
        mAP=last['coco/bbox_mAP'],
        AP50=last['coco/bbox_mAP_50'],
        step=statistics.median(line['time'] for line in logged if 'lr' in line),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description='Accuracy and price of auxiliary networks')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument('--variants', nargs='+', choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/auxiliary_networks')
    args = parser.parse_args()
    console = Console()

    def one(name: str, seed: int) -> dict:
        folder = args.out / file_name(f'{name}_{args.epochs}') / f'seed_{seed}'
        return train(folder, config(*VARIANTS[name], seed, args.epochs), figures)

    def say(found: dict) -> str:
        return f'mAP {found["mAP"]:.3f}, AP50 {found["AP50"]:.3f}, {found["minutes"]:.1f} min'

    results = run_all(args.variants, args.seeds, one, say, args.jobs, console)
    table = Table(title=f'RetinaNet-R34 on digits, {args.epochs} epochs, seeds {args.seeds}')
    for column in ('auxiliary network', 'mAP', 'AP50', 'mAP of each seed', 's / step'):
        table.add_column(column)
    for name, by_seed in results.items():
        table.add_row(
            name,
            *(spread([100 * by_seed[seed][key] for seed in args.seeds]) for key in ('mAP', 'AP50')),
            ', '.join(f'{100 * by_seed[seed]["mAP"]:.1f}' for seed in args.seeds),
            f'{statistics.median(by_seed[seed]["step"] for seed in args.seeds):.3f}',
        )
    console.print(table)


if __name__ == '__main__':
    command_line.run(main)
