"""What cheaper auxiliary networks cost in accuracy: several seeds of the demo's training.

    python benchmarks/auxiliary_networks.py [--seeds 0 1 2] [--jobs 2] [--variants ...]

Trains the demo's RetinaNet on digits by back-propagation and by FBA with auxiliary networks of
several prices, one thread for each training. Goes on where it stopped: a run whose result lies in
``--out`` is not done again. Ends with a table: COCO mAP and AP50 of every seed, their mean and
standard deviation, and the time of a step.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BP = 'configs/demo/retinanet_r34_digits.py'
FBA = 'configs/demo/retinanet_r34_fba_digits.py'


def light(channels: int) -> list:
    """Overrides for an own head per module, one anchor per position."""
    head = dict(
        type='LightRetinaNet', num_classes=10, channels=channels, octave_base_scale=2,
        ratios=[1.4], strides=[8, 16, 32, 64],
        neck=dict(start_level=0, num_outs=4, add_extra_convs='on_output'))
    return [('auxiliary', dict(type='SLM', channels=channels, head=head))]


VARIANTS = {
    'BP': (BP, []),
    'FBA, shared head': (FBA, []),
    'FBA, shared head, half the images': (FBA, [('auxiliary', dict(type='SLM', image_share=.5))]),
    'FBA, shared head, a quarter of the images': (
        FBA, [('auxiliary', dict(type='SLM', image_share=.25))]),
    'FBA, own light head, 16 channels': (FBA, light(16)),
    'FBA, own light head, 32 channels': (FBA, light(32)),
}


def write_config(path: Path, base: str, backbone: list, seed: int, epochs: int) -> None:
    """Write the config of one training."""
    lines = [f'_base_ = {str(ROOT / base)!r}', f'randomness = dict(seed={seed})']
    if backbone:
        settings = ', '.join(f'{key}={value!r}' for key, value in backbone)
        lines.append(f'model = dict(backbone=dict({settings}))')
    lines.append(f'max_epochs = {epochs}')
    lines.append(f'train_cfg = dict(max_epochs={epochs}, val_interval={epochs})')
    lines.append(
        "param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, "
        f"end=50), dict(type='CosineAnnealingLR', eta_min=1e-5, begin=0, T_max={epochs}, "
        'by_epoch=True, convert_to_iter_based=True)]')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def train(out: Path, name: str, seed: int, epochs: int) -> dict:
    """Train one variant with one seed, or return the result of the run that did."""
    folder = out / re.sub(r'\W+', '_', f'{name}_{epochs}') / f'seed_{seed}'
    result = folder / 'result.json'
    if result.exists():
        return json.loads(result.read_text())
    base, backbone = VARIANTS[name]
    write_config(folder / 'config.py', base, backbone, seed, epochs)
    start = time.perf_counter()
    log = folder / 'train.log'
    with log.open('w') as file:
        code = subprocess.run(
            [sys.executable, 'tools/train.py', str(folder / 'config.py'), '--work-dir',
             str(folder / 'work_dir')],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env=dict(os.environ, OMP_NUM_THREADS='1')).returncode
    text = log.read_text()
    found = re.findall(r'bbox_mAP: ([\d.]+).*?bbox_mAP_50: ([\d.]+)', text)
    if code or not found:
        raise RuntimeError(f'{name}, seed {seed} failed, see {log}')
    times = [float(t) for t in re.findall(r'Epoch\(train\).*? time: ([\d.]+)', text)]
    figures = dict(
        mAP=float(found[-1][0]), AP50=float(found[-1][1]), step=statistics.median(times),
        minutes=(time.perf_counter() - start) / 60)
    result.write_text(json.dumps(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description='Accuracy and price of auxiliary networks')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument('--variants', nargs='+', choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/auxiliary_networks')
    args = parser.parse_args()
    console = Console()
    runs = [(name, seed) for seed in args.seeds for name in args.variants]
    results = {name: {} for name in args.variants}

    def one(run: tuple) -> None:
        name, seed = run
        results[name][seed] = train(args.out, name, seed, args.epochs)
        figures = results[name][seed]
        console.print(f'{name}, seed {seed}: mAP {figures["mAP"]:.3f}, AP50 '
                      f'{figures["AP50"]:.3f}, {figures["minutes"]:.1f} min')

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, runs))
    table = Table(title=f'RetinaNet-R34 on digits, {args.epochs} epochs, seeds {args.seeds}')
    for column in ('auxiliary network', 'mAP', 'AP50', 'mAP of each seed', 's / step'):
        table.add_column(column)
    for name, by_seed in results.items():
        row = [name]
        for key in ('mAP', 'AP50'):
            values = [100 * by_seed[seed][key] for seed in args.seeds]
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            row.append(f'{statistics.mean(values):.1f}{spread}')
        row.append(', '.join(f'{100 * by_seed[seed]["mAP"]:.1f}' for seed in args.seeds))
        row.append(f'{statistics.median(by_seed[seed]["step"] for seed in args.seeds):.3f}')
        table.add_row(*row)
    console.print(table)


if __name__ == '__main__':
    main()
