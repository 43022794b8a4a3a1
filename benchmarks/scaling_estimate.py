"""An ESTIMATE of how data parallel training scales to many GPUs; nothing here ran on many GPUs.

    python benchmarks/scaling_estimate.py [--step-ms 120] [--intra 2400] [--inter 1 4 25]

What is measured: one training step in one process on this machine, of RetinaNet-R50 by BP and by
FBA with light heads, with the moment at which each parameter's gradient is complete. What is given:
how long BP's step takes on the GPU in question (all times are scaled by that), the bandwidth of a
GPU to the others of its machine and to other machines, and the delay of a message. What is
computed: when each bucket could start, one after the other on one channel, and how long the GPU
waits for it.

All-reduce in two levels, for V bytes on m machines of g GPUs with the bandwidths B and b:
2 V (g-1) / (g B) within the machines, 2 (V/g) (m-1) / (m b) between them, and a delay for each of
the 2 (g-1) + 2 log2(m) messages in a row. Left out: stragglers, networks shared with others, data
loading, and that communication slows down computing on the same GPU.
"""

import argparse
import json
import math
from pathlib import Path
from time import process_time
from typing import Dict, List, NamedTuple, Tuple
from unittest import mock

import torch
from data_parallel import BUCKET_MB, ways
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from fba_mm import localize
from fba_mm.analysis.step_configs import trains_locally
from fba_mm.analysis.step_phases import marked_phases
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.distributed.gradient_reducer import GradientReducer

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


class Recorded(NamedTuple):
    """One training step in one process and thread; seconds of computing since its beginning.

    Attributes:
        buckets: For each bucket, when its gradients are complete, its bytes, and its module.
        backwards: When each module's backward pass begins, in order.
        end: When the step is over.
    """

    buckets: List[Tuple[float, int, int]]
    backwards: List[float]
    end: float


def record(cfg: Config, shape: Tuple[int, ...], rounds: int) -> Recorded:
    """The median step of several."""
    step = TrainingStep(cfg)
    step.model.init_weights()
    batch = synthetic_batch(step.model, shape)
    records = [_record_once(step, batch, trains_locally(cfg)) for _ in range(rounds + 1)][1:]
    return sorted(records, key=lambda r: r.end)[len(records) // 2]


def _record_once(step: TrainingStep, batch: dict, local: bool) -> Recorded:
    complete: Dict[torch.nn.Parameter, float] = {}
    marks: List[Tuple[str, float]] = []
    parameters = [p for p in step.model.parameters() if p.requires_grad]
    # The last time counts: a shared parameter gets its gradient in several passes.
    handles = [
        p.register_post_accumulate_grad_hook(lambda p: complete.__setitem__(p, process_time()))
        for p in parameters
    ]
    with mock.patch(
        'fba_mm.analysis.step_phases.mark', lambda name: marks.append((name, process_time()))
    ), marked_phases(step.model, step.optim_wrapper):
        step(batch)
    end = process_time()
    for handle in handles:
        handle.remove()
    zero = marks[0][1]
    modules = [parameters]
    if local:
        backbone = step.model.backbone
        own = [
            [p for p in backbone.local_parameters(k) if p.requires_grad]
            for k in range(backbone.num_modules - 1)
        ]
        known = {p for module in own for p in module}
        modules = own + [[p for p in parameters if p not in known]]
    reducer = GradientReducer({}, bucket_cap_mb=BUCKET_MB)
    buckets = [
        (
            max(complete[p] for p in bucket.parameters) - zero,
            sum(p.nbytes for p in bucket.parameters),
            k,
        )
        for k, module in enumerate(modules)
        for bucket in reducer._buckets(module)
    ]
    backwards = [t - zero for name, t in marks if name.endswith('backward')]
    return Recorded(buckets, backwards, end - zero)


def all_reduce_seconds(size: int, gpus: int, args: argparse.Namespace) -> float:
    """The module's formula."""
    here = min(gpus, args.per_machine)
    machines = gpus // here
    gbit = 8 * size / 1e9
    return (
        2 * gbit * (here - 1) / here / args.intra
        + 2 * gbit / here * (machines - 1) / machines / args.inter
        + 1e-6 * args.delay_us * (2 * (here - 1) + 2 * math.log2(machines))
    )


def estimate(
    step: Recorded, scale: float, eager: bool, gpus: int, args: argparse.Namespace
) -> Tuple[float, float]:
    """Seconds of a step, and those of them that it waits."""
    channel = waited = 0.0
    done: Dict[int, float] = {}
    for ready, size, module in step.buckets:
        # With eager steps, a module's gradients are awaited before the next backward pass.
        if eager and module and module - 1 in done:
            begin = step.backwards[module] * scale + waited
            waited += max(done.pop(module - 1) - begin, 0)
        channel = max(channel, ready * scale + waited) + all_reduce_seconds(size, gpus, args)
        done[module] = channel
    last = max(ready for ready, _, _ in step.buckets) * scale + waited
    waited += max(channel - last, 0)
    return step.end * scale + waited, waited


def main() -> None:
    parser = argparse.ArgumentParser(description='Estimate how data parallel training scales')
    parser.add_argument(
        '--step-ms',
        type=float,
        default=120,
        help="given: BP's step on one GPU, without communication",
    )
    parser.add_argument(
        '--intra',
        type=float,
        default=2400,
        help='given: Gbit/s of a GPU to the others of its machine',
    )
    parser.add_argument(
        '--inter',
        type=float,
        nargs='+',
        default=[1, 4, 25],
        help='given: Gbit/s of a GPU to other machines, its share of the network card',
    )
    parser.add_argument('--delay-us', type=float, default=10, help='given: of a message')
    parser.add_argument('--per-machine', type=int, default=8, help='given: GPUs of a machine')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', type=Path, help='also write what was measured to this JSON file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel('WARNING')
    shape = (args.batch, 3, args.size, args.size)
    configs = ways()
    configs["FBA K='blocks', apply='eager'"] = localize(
        next(iter(configs.values())), 'blocks', auxiliary='light', apply='eager'
    )
    steps = {name: record(cfg, shape, args.rounds) for name, cfg in configs.items()}
    if args.out is not None:
        args.out.write_text(json.dumps({name: step._asdict() for name, step in steps.items()}))
    # What of BP's step is computing, on this machine, becomes --step-ms.
    scale = args.step_ms / 1000 / next(iter(steps.values())).end
    console = Console(width=140)
    speeds = args.inter
    for args.inter in speeds:
        table = Table(
            'training',
            'MiB',
            *map(str, GPUS),
            title=(
                f'ESTIMATE: ms of a step (share that it waits), by number of GPUs; given: BP '
                f'{args.step_ms:g} ms alone, {args.intra:g} Gbit/s in a machine, {args.inter:g} '
                'Gbit/s between'
            ),
        )
        for name, step in steps.items():
            cells = []
            for gpus in GPUS:
                total, waited = estimate(step, scale, 'eager' in name, gpus, args)
                cells.append(f'{1000 * total:.0f} ({100 * waited / total:.0f}%)')
            mib = sum(size for _, size, _ in step.buckets) / 2**20
            table.add_row(name, f'{mib:.0f}', *cells)
        console.print(table)


if __name__ == '__main__':
    main()
