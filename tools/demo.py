"""Train a small RetinaNet twice on handwritten digits, by back-propagation and by FBA, and compare.

    python tools/demo.py [--out work_dirs/demo]

Builds its own data, trains both from scratch for the same number of epochs, and leaves a table, a
picture of what FBA detects and one of the memory along a training step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Deque, Dict, List

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from rich.console import Console
from rich.table import Table

from fba_mm import command_line
from fba_mm.analysis import StepMemory, TrainingStep, draw_memory, measure_step
from fba_mm.checkpoint import guard_checkpoints
from fba_mm.datasets import build_digits_on_photos
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    'BP': ROOT / 'configs/demo/retinanet_r34_digits.py',
    'FBA': ROOT / 'configs/demo/retinanet_r34_fba_digits.py',
}
SHOWN = ('Epoch(', 'Local learning in', '  module ', 'error:')


def train(work_dirs: Dict[str, Path], overrides: List[str]) -> None:
    """Train all configs side by side with tools/train.py, as a user would, and show their progress.

    Each gets its share of the cores: small networks gain little from a second one, and two
    processes that both want all cores hold each other up.
    """
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads_each()))
    processes = {
        name: subprocess.Popen(
            [
                sys.executable,
                str(ROOT / 'tools/train.py'),
                str(CONFIGS[name]),
                '--work-dir',
                str(work_dir),
                '--cfg-options',
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for name, work_dir in work_dirs.items()
    }
    tails: Dict[str, Deque[str]] = {name: deque(maxlen=30) for name in processes}

    def show(name: str) -> None:
        for line in processes[name].stdout:
            tails[name].append(line.rstrip())
            if any(mark in line for mark in SHOWN):
                print(f'{name:>4} | {line.split(" - INFO - ")[-1].rstrip()}', flush=True)

    readers = [threading.Thread(target=show, args=(name,), daemon=True) for name in processes]
    try:
        for reader in readers:
            reader.start()
        failed = None
        # When one fails, the other is of no use.
        while not failed and any(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
            failed = next((name for name, process in processes.items() if process.poll()), None)
    finally:
        for process in processes.values():
            process.terminate()
        for reader in readers:
            reader.join()
    if failed:
        print('\n'.join(tails[failed]), file=sys.stderr)
        raise LocalLearningError(
            f'training {failed} failed, see above and the log in {work_dirs[failed]}'
        )


def threads_each() -> int:
    """Threads for one of the trainings that run side by side."""
    return max((os.cpu_count() or 1) // len(CONFIGS), 1)


def final_metrics(work_dir: Path) -> Dict[str, float]:
    """COCO metrics of the last evaluation in a work directory."""
    latest = max(work_dir.glob('*/vis_data/scalars.json'))
    rows = [json.loads(line) for line in latest.read_text().splitlines()]
    return next(row for row in reversed(rows) if 'coco/bbox_mAP' in row)


def compare_steps(cfgs: Dict[str, Config], rounds: int = 15) -> Dict[str, Dict[str, object]]:
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
            seconds=statistics.median(seconds[name]),
        )
        for name, step in steps.items()
    }


def draw_detections(cfg: Config, checkpoint: Path, out_file: Path, count: int = 8) -> None:
    """Draw ground truth and detections, side by side, of some validation images."""
    from mmdet.apis import inference_detector, init_detector

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = init_detector(cfg.copy(), str(checkpoint), palette='random', device='cpu')
    visualizer = Visualizer.get_instance('demo')
    tiles = []
    # Spread over the set: neighbours in it may show the same photo.
    for index in np.linspace(0, len(dataset) - 1, count).astype(int):
        info = dataset.get_data_info(int(index))
        found = inference_detector(model, info['img_path']).pred_instances
        found = found[found.scores > 0.3]
        image = mmcv.imread(info['img_path'], channel_order='rgb')
        truth = info['instances']
        pair = [
            draw_boxes(
                visualizer, image, [i['bbox'] for i in truth], [str(i['bbox_label']) for i in truth]
            ),
            draw_boxes(
                visualizer,
                image,
                found.bboxes.tolist(),
                [f'{c}: {s:.0%}' for c, s in zip(found.labels, found.scores)],
            ),
        ]
        tiles.append(np.pad(np.hstack(pair), ((6, 6), (12, 12), (0, 0)), constant_values=255))
    mmcv.imwrite(
        mmcv.rgb2bgr(np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, count, 2)])),
        str(out_file),
    )


def draw_boxes(
    visualizer: Visualizer, image: np.ndarray, boxes: list, labels: List[str], scale: int = 3
) -> np.ndarray:
    """Draw labelled boxes on an image that is enlarged first."""
    visualizer.set_image(mmcv.imrescale(image, float(scale)))
    height, width = image.shape[0] * scale, image.shape[1] * scale
    if boxes:
        boxes = (np.array(boxes) * scale).clip(1, (width - 1, height - 1) * 2)
        visualizer.draw_bboxes(boxes, edge_colors='white', line_widths=3)
        visualizer.draw_texts(
            labels,
            boxes[:, :2] + 2,
            font_sizes=15,
            colors='white',
            bboxes=[dict(facecolor='black', alpha=0.7, pad=1, edgecolor='none')] * len(boxes),
        )
    return visualizer.get_image()


def print_table(console: Console, metrics: dict, steps: dict) -> dict:
    """Print the comparison, and return its figures."""
    table = Table(title='RetinaNet on digits, from scratch, the same epochs and data')
    for column in ('', 'mAP', 'AP50', 'peak memory', 'time per iteration'):
        table.add_column(column, justify='left' if not column else 'right')
    figures = {}
    for name, step in steps.items():
        memory: StepMemory = step['memory']
        figures[name] = dict(
            mAP=metrics[name]['coco/bbox_mAP'],
            AP50=metrics[name]['coco/bbox_mAP_50'],
            peak_MiB=round(memory.peak_bytes / 2**20, 1),
            iteration_s=round(step['seconds'], 3),
        )
        row = figures[name]
        table.add_row(
            name,
            f'{row["mAP"]:.3f}',
            f'{row["AP50"]:.3f}',
            f'{row["peak_MiB"]} MiB',
            f'{row["iteration_s"]} s',
        )
    bp, fba = figures['BP'], figures['FBA']
    table.add_row(
        'FBA / BP',
        '',
        '',
        f'{fba["peak_MiB"] / bp["peak_MiB"]:.2f}',
        f'{fba["iteration_s"] / bp["iteration_s"]:.2f}',
    )
    console.print(table)
    console.print(
        'Peak memory: live tensors above parameters, buffers and optimizer state. Time: '
        f'median of iterations by turns, {torch.get_num_threads()} thread(s).'
    )
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
    overrides = [
        f'{key}={value}'
        for key, value in {
            'train_dataloader.dataset.data_root': f'{data}/',
            'val_dataloader.dataset.data_root': f'{data}/',
            'val_evaluator.ann_file': data / 'annotations/instances_val.json',
        }.items()
    ]
    if args.epochs:
        overrides += [
            f'train_cfg.max_epochs={args.epochs}',
            f'train_cfg.val_interval={args.epochs}',
            f'default_hooks.checkpoint.interval={args.epochs}',
            f'param_scheduler.1.T_max={args.epochs}',
        ]
    console.rule('Training by back-propagation and by FBA, side by side')
    work_dirs = {name: out / name.lower() for name in CONFIGS}
    train(work_dirs, overrides)
    metrics = {name: final_metrics(work_dir) for name, work_dir in work_dirs.items()}
    cfgs = {name: Config.fromfile(work_dirs[name] / CONFIGS[name].name) for name in CONFIGS}

    console.rule('Comparing one training iteration of each')
    torch.set_num_threads(threads_each())
    steps = compare_steps(cfgs)
    figures = print_table(console, metrics, steps)
    (out / 'figures.json').write_text(json.dumps(figures, indent=2) + '\n')
    draw_memory({name: step['memory'] for name, step in steps.items()}, out / 'memory.png')
    latest = Path((out / 'fba' / 'last_checkpoint').read_text().strip())
    draw_detections(cfgs['FBA'], latest, out / 'detections.png')
    console.print(
        f'ground truth | what FBA detects: {out / "detections.png"}\n'
        f'memory along a training step:   {out / "memory.png"}\n'
        f'figures:                        {out / "figures.json"}',
        soft_wrap=True,
    )


if __name__ == '__main__':
    command_line.run(main)
