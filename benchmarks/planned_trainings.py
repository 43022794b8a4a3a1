"""What the planner chooses for four budgets on four tasks, and what an iteration then takes.

    python benchmarks/planned_trainings.py [--works retinanet_r50 edsr ...]

Stock configs of MMDetection, MMPretrain, mmsegmentation and mmagic on batches that a small machine
can do, from scratch, float32, on the CPU. The budgets: what the config takes as shipped, 0.8 and
0.6 of it, and the least that the planner finds. What it chooses then trains for two iterations; the
second is measured, with all tensors, parameters and optimizer state included.
"""

import argparse
import gc
from functools import partial
from typing import Iterator, Tuple

import torch
from mmengine.config import Config

from fba_mm.analysis import TrainingStep, measure_step, predict_memory, resident_bytes
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import from_scratch
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.config import load_config
from fba_mm.planning import plan_training

MIB = 2**20
WORKS = {
    'edsr': ('mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py', (4, 3, 48, 48)),
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (4, 3, 224, 224)),
    'fcn_r50': ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', (2, 3, 128, 256)),
    'retinanet_r50': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', (2, 3, 320, 320)),
}


def taken(cfg: Config, shape: tuple) -> int:
    """The most bytes at once in the second training iteration, parameters and state included."""
    with quiet():
        step = TrainingStep(from_scratch(cfg))
        step.model.init_weights()
    data = synthetic_batch(step.model, shape)
    step(data)
    gc.collect()
    sizes = resident_bytes(step.model, step.optim_wrapper.optimizer)
    peak = measure_step(partial(step, data)).peak_bytes
    return sizes['parameters'] + sizes['optimizer_state'] + peak


def budgets(cfg: Config, shape: tuple) -> Iterator[int]:
    """Four budgets, each less than the one before."""
    shipped = predict_memory(cfg, shape)
    yield from (int(shipped.total * share) for share in (1, 0.8, 0.6))
    # Nothing fits: all is tried.
    yield plan_training(cfg, shipped.resident, shape).least.memory.total


def rows(name: str) -> Iterator[Tuple[str, ...]]:
    """The cells of a network's rows."""
    path, shape = WORKS[name]
    cfg = load_config(path)
    for budget in budgets(cfg, shape):
        plan = plan_training(cfg, budget, shape)
        if plan.chosen is None:
            yield f'{budget / MIB:,.1f}', f'none: the least is {plan.least.way.name}', '', '', ''
            continue
        way, predicted = plan.chosen.way, plan.chosen.memory.total
        with quiet():
            measured = taken(way.configure(cfg), shape)
        yield (
            f'{budget / MIB:,.1f}',
            way.name,
            'yes' if way.exact else 'no',
            f'{predicted / MIB:,.1f}',
            f'{measured / MIB:,.1f}{"" if measured <= budget else " (!)"}',
        )


def main() -> None:
    parser = argparse.ArgumentParser(description='Budgets, plans and what trainings then take')
    parser.add_argument('--works', nargs='+', choices=list(WORKS), default=list(WORKS))
    args = parser.parse_args()
    print(f'torch {torch.__version__}, MiB')
    print('| network, batch | budget | chosen | exact | predicted | measured |')
    print('|---|---|---|---|---|---|')
    for work in args.works:
        label = f'{work}, {"×".join(map(str, WORKS[work][1]))}'
        for cells in rows(work):
            print(f'| {label} | {" | ".join(cells)} |', flush=True)
            label = ''


if __name__ == '__main__':
    main()
