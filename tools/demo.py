"""Train a small RetinaNet twice on handwritten digits, by back-propagation and by FBA, and compare.

    python tools/demo.py [--out work_dirs/demo]

Builds its own data, trains both from scratch for the same number of epochs, and leaves a table, a
picture of what FBA detects and one of the memory along a training step.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table

from fba_mm import command_line
from fba_mm.analysis import StepMemory, TrainingStep, draw_memory, measure_step
from fba_mm.datasets import build_digits_on_photos
from fba_mm.engine.checkpoint import guard_checkpoints
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    'BP': ROOT / 'configs/demo/retinanet_r34_digits.py',
    'FBA': ROOT / 'configs/demo/retinanet_r34_fba_digits.py'
}
SHOWN = ('Epoch(', 'Local learning in', '  module ', 'error:')


def train(name: str, work_dir: Path, overrides: List[str], console: Console) -> float:
    """Train one config with tools/train.py, as a user would, and show its progress.

    Returns:
        Seconds that it took.
    """
    console.rule(f'{name}: tools/train.py {CONFIGS[name].relative_to(ROOT)}')
    command = [
        sys.executable, str(ROOT / 'tools/train.py'), str(CONFIGS[name]), '--work-dir',
        str(work_dir), '--cfg-options', *overrides
    ]
    start = time.perf_counter()
    tail: List[str] = []
    with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            tail = [*tail[-29:], line.rstrip()]
            if any(mark in line for mark in SHOWN):
                print(line.split(' - INFO - ')[-1].rstrip(), flush=True)
    if process.returncode:
        print('\n'.join(tail), file=sys.stderr)
        raise LocalLearningError(f'training {name} failed, see above and the log in {work_dir}')
    return time.perf_counter() - start


def final_metrics(work_dir: Path) -> Dict[str, float]:
    """COCO metrics of the last evaluation in a work directory."""
    latest = max(work_dir.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in latest.read_text().splitlines()]
    return next(row for row in reversed(rows) if 'coco/bbox_mAP' in row)


def compare_steps(cfgs: Dict[str, Config],
                  rounds: int = 15) -> Dict[str, Dict[str, object]]:
    """Memory and time of one training step of each config, on the same batch, by turns."""
    dataloader = dict(cfgs['BP'].train_dataloader, num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        batch = next(iter(Runner.build_dataloader(dataloader, seed=0)))
    steps = {name: TrainingStep(cfg) for name, cfg in cfgs.items()}
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(batch)
        step(batch)
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: dict(
            memory=measure_step(lambda step=step: step(batch)),
            seconds=statistics.median(seconds[name]))
        for name, step in steps.items()
    }


def draw_detections(cfg: Config, checkpoint: Path, out_file: Path, count: int = 8) -> None:
    """Draw ground truth and detections, side by side, of the first validation images."""
    from mmdet.apis import inference_detector, init_detector
    cfg = cfg.copy()
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='demo', line_width=2))
        visualizer.dataset_meta = dict(dataset.metainfo, palette='random')
    model = init_detector(cfg, str(checkpoint), palette='random', device='cpu')
    scale, tiles = 3, []
    # Spread over the set: neighbours in it may show the same photo.
    for index in np.linspace(0, len(dataset) - 1, count).astype(int):
        image_path = dataset.get_data_info(int(index))['img_path']
        sample = inference_detector(model, image_path)
        truth = dataset[int(index)]['data_samples'].gt_instances
        factor = truth.bboxes.tensor.new_tensor(sample.scale_factor).repeat(2)
        sample.gt_instances = InstanceData(
            bboxes=truth.bboxes.tensor / factor * scale, labels=truth.labels)
        sample.pred_instances.bboxes = sample.pred_instances.bboxes * scale
        image = mmcv.imrescale(mmcv.imread(image_path, channel_order='rgb'), float(scale))
        visualizer.add_datasample(
            'detections', image, data_sample=sample, draw_gt=True, pred_score_thr=0.3)
        pair = visualizer.get_image()
        tiles.append(np.pad(pair, ((4, 4), (8, 8), (0, 0)), constant_values=255))
    rows = [np.concatenate(tiles[i:i + 2], axis=1) for i in range(0, len(tiles), 2)]
    mmcv.imwrite(mmcv.rgb2bgr(np.concatenate(rows)), str(out_file))


def print_table(console: Console, metrics: dict, steps: dict, seconds: dict) -> dict:
    """Print the comparison, and return its figures."""
    table = Table(title='RetinaNet on digits, from scratch, the same epochs and data')
    for column in ('', 'mAP', 'AP50', 'peak memory of a step', 'time of a step', 'training'):
        table.add_column(column, justify='left' if not column else 'right')
    figures = {}
    for name, step in steps.items():
        memory: StepMemory = step['memory']
        figures[name] = dict(
            mAP=metrics[name]['coco/bbox_mAP'],
            AP50=metrics[name]['coco/bbox_mAP_50'],
            peak_MiB=round(memory.peak_bytes / 2**20, 1),
            step_s=round(step['seconds'], 3),
            training_s=round(seconds[name]))
        row = figures[name]
        table.add_row(name, f'{row["mAP"]:.3f}', f'{row["AP50"]:.3f}', f'{row["peak_MiB"]} MiB',
                      f'{row["step_s"]} s', f'{row["training_s"]} s')
    bp, fba = figures['BP'], figures['FBA']
    table.add_row('FBA / BP', '', '', f'{fba["peak_MiB"] / bp["peak_MiB"]:.2f}',
                  f'{fba["step_s"] / bp["step_s"]:.2f}',
                  f'{fba["training_s"] / bp["training_s"]:.2f}')
    console.print(table)
    console.print('Peak memory: live tensors above parameters, buffers and optimizer state. '
                  'Time of a step: median, by turns.')
    return figures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare BP and FBA on a small detection task')
    parser.add_argument('--out', default='work_dirs/demo', help='where everything goes')
    parser.add_argument('--data', default='data/digits_on_photos', help='where the data is built')
    parser.add_argument('--epochs', type=int, help="instead of the config's")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    guard_checkpoints()
    console = Console()
    out, data = Path(args.out), Path(args.data).resolve()
    console.rule('Data')
    build_digits_on_photos(data, **Config.fromfile(CONFIGS['BP']).digits)
    overrides = [f'{key}={value}' for key, value in {
        'train_dataloader.dataset.data_root': f'{data}/',
        'val_dataloader.dataset.data_root': f'{data}/',
        'val_evaluator.ann_file': data / 'annotations/instances_val.json',
    }.items()]
    if args.epochs:
        overrides += [f'train_cfg.max_epochs={args.epochs}', f'train_cfg.val_interval={args.epochs}',
                      f'default_hooks.checkpoint.interval={args.epochs}',
                      f'param_scheduler.1.T_max={args.epochs}']
    cfgs, metrics, seconds = {}, {}, {}
    for name in CONFIGS:
        seconds[name] = train(name, out / name.lower(), overrides, console)
        metrics[name] = final_metrics(out / name.lower())
        cfgs[name] = Config.fromfile(out / name.lower() / CONFIGS[name].name)

    console.rule('Comparing one training step of each')
    steps = compare_steps(cfgs)
    figures = print_table(console, metrics, steps, seconds)
    (out / 'figures.json').write_text(json.dumps(figures, indent=2) + '\n')
    draw_memory({name: step['memory'] for name, step in steps.items()}, out / 'memory.png')
    latest = Path((out / 'fba' / 'last_checkpoint').read_text().strip())
    draw_detections(cfgs['FBA'], latest, out / 'detections.png')
    console.print(f'ground truth | what FBA detects: {out / "detections.png"}\n'
                  f'memory along a training step:   {out / "memory.png"}\n'
                  f'figures:                        {out / "figures.json"}', soft_wrap=True)


if __name__ == '__main__':
    command_line.run(main)
