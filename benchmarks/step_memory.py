"""Peak memory and time of one RetinaNet training step: BP, activation checkpointing, FBA.

    python benchmarks/step_memory.py [--depth 50] [--size 320] [--batch 2] [--rounds 5]

float32 on the CPU, random images and boxes. Peak: live tensors above parameters, buffers and
optimizer state. Time: median over rounds in which the variants take turns.
"""
import argparse
import statistics
import time

import torch
from mmdet.testing import demo_mm_inputs
from rich.console import Console
from rich.table import Table

from fba_mm import localize
from fba_mm.analysis import TrainingStep, measure_step
from fba_mm.config import load_config

STOCK = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
LIGHT = 64


def stock(depth: int):
    """The stock config, trained from scratch: nothing frozen, nothing downloaded."""
    cfg = load_config(STOCK)
    cfg.model.backbone.update(
        depth=depth, init_cfg=None, frozen_stages=-1, norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True))
    return cfg


def light_head(cfg) -> dict:
    """An auxiliary network with a narrow neck and head of its own."""
    model = cfg.model
    head = dict(
        model.bbox_head, in_channels=LIGHT, feat_channels=LIGHT, stacked_convs=1,
        anchor_generator=dict(model.bbox_head.anchor_generator, scales_per_octave=1, ratios=[1.0]))
    return dict(
        type='SLM', channels=LIGHT,
        head=dict(
            type=model.type, neck=dict(model.neck, out_channels=LIGHT), bbox_head=head,
            train_cfg=model.train_cfg, test_cfg=model.test_cfg))


def variants(depth: int) -> dict:
    """Name → config."""
    bp = stock(depth)
    checkpointed = stock(depth)
    checkpointed.model.backbone.with_cp = True
    return {
        'BP': bp,
        'BP, with_cp=True': checkpointed,
        "FBA K=4, shared head": localize(bp, 4),
        "FBA K='stages', shared head": localize(bp, 'stages'),
        "FBA K='blocks', shared head": localize(bp, 'blocks'),
        "FBA K=4, light heads, eager": localize(bp, 4, apply='eager', auxiliary=light_head(bp)),
        "FBA K='blocks', light heads, eager": localize(
            bp, 'blocks', apply='eager', auxiliary=light_head(bp)),
        "FBA K=4, light heads, eager, with_cp": localize(
            checkpointed, 4, apply='eager', auxiliary=light_head(bp)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory and time of a training step')
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--size', type=int, default=320, help='height and width, in pixels')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5, help='0 measures memory alone')
    args = parser.parse_args()
    batch = demo_mm_inputs(
        args.batch, [[3, args.size, args.size]] * args.batch, num_items=[8] * args.batch,
        num_classes=80)
    steps, peaks, seconds = {}, {}, {}
    console = Console()
    for name, cfg in variants(args.depth).items():
        torch.manual_seed(0)
        step = TrainingStep(cfg)
        step(batch)
        peaks[name] = measure_step(lambda: step(batch)).peak_bytes / 2**20
        console.print(f'{name}: {peaks[name]:.0f} MiB')
        seconds[name] = []
        if args.rounds:
            steps[name] = step
        del step
    for round_ in range(args.rounds):
        console.print(f'timing, round {round_ + 1} of {args.rounds}')
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)
    table = Table(title=f'RetinaNet-R{args.depth}, {args.batch}×3×{args.size}×{args.size}, '
                  f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    for column in ('variant', 'peak MiB', '/ BP', '/ with_cp', 's', '/ BP'):
        table.add_column(column, justify='left' if column == 'variant' else 'right')
    base = {name: statistics.median(s) if s else float('nan') for name, s in seconds.items()}
    for name, peak in peaks.items():
        table.add_row(name, f'{peak:.0f}', f'{peak / peaks["BP"]:.2f}',
                      f'{peak / peaks["BP, with_cp=True"]:.2f}', f'{base[name]:.2f}',
                      f'{base[name] / base["BP"]:.2f}')
    console.print(table)


if __name__ == '__main__':
    main()
