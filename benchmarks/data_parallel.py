"""What travels between processes in a training step, and what of it is hidden behind computing.

    python benchmarks/data_parallel.py [--processes 2] [--picture docs/images/data_parallel.png]

RetinaNet-R50 on random images, by back-propagation under torch's DistributedDataParallel and by FBA
with light heads under LocalDataParallel, in processes on this machine that talk through gloo. Each
starts with one thread. A bucket's time goes from its start to the moment when gloo has finished it;
a process waits when it needs gradients that are still under way.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from wrapped_step import WrappedStep

from fba_mm import LocalBackbone, LocalDataParallel, localize
from fba_mm.analysis.step_phases import marked_phases
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.config import load_config
from fba_mm.distributed.gradient_reducer import _Bucket

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
BUCKET_MB = 25


def ways() -> Dict[str, Config]:
    """The configs to compare, from scratch and with nothing frozen."""
    stock = load_config(RETINANET)
    stock.model.backbone.update(
        init_cfg=None,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
    )
    stock.model.bbox_head.loss_cls.type = 'SlicedFocalLoss'
    return {
        'BP, DistributedDataParallel': stock,
        "FBA K=4, apply='end'": localize(stock, 4, auxiliary='light', apply='end'),
        "FBA K=4, apply='eager'": localize(stock, 4, auxiliary='light', apply='eager'),
    }


def wrapped(model: nn.Module) -> nn.Module:
    """A model with its own initial weights, in the wrapper that its way to train asks for."""
    model.init_weights()
    if any(isinstance(module, LocalBackbone) for module in model.modules()):
        return LocalDataParallel(model, bucket_cap_mb=BUCKET_MB)
    model = MMDistributedDataParallel(model, bucket_cap_mb=BUCKET_MB, broadcast_buffers=False)
    # The same as without a hook, but seen from here.
    model.register_comm_hook(None, _mean)
    return model


def _mean(_, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    flat = bucket.buffer().div_(dist.get_world_size())
    return dist.all_reduce(flat, async_op=True).get_future().then(lambda done: done.value()[0])


class Timeline:
    """When the parts of a step began, buckets were under way, and the process waited; in seconds.

    Attributes:
        phases: Names and beginnings of the parts, in order; the last one is ``'end'``.
        buckets: Beginning, end and bytes of each.
        waits: Beginning and end of each.
    """

    def __init__(self):
        self.phases: List[Tuple[str, float]] = []
        self.buckets: List[list] = []
        self.waits: List[Tuple[float, float]] = []

    def record(self, step: TrainingStep, batch: Any) -> None:
        """Do one training step."""
        all_reduce, finish = dist.all_reduce, _Bucket.finish

        def sending(tensor, *args, **kwargs):
            bucket = [time.perf_counter(), None, tensor.nbytes]
            self.buckets.append(bucket)
            work = all_reduce(tensor, *args, **kwargs)
            work.get_future().add_done_callback(
                lambda _: bucket.__setitem__(1, time.perf_counter())
            )
            return work

        def waiting(bucket):
            start = time.perf_counter()
            finish(bucket)
            self.waits.append((start, time.perf_counter()))

        def mark(name: str) -> None:
            self.phases.append((name, time.perf_counter()))

        with ExitStack() as stack:
            stack.enter_context(mock.patch('fba_mm.analysis.step_phases.mark', mark))
            stack.enter_context(mock.patch('torch.distributed.all_reduce', sending))
            stack.enter_context(mock.patch.object(_Bucket, 'finish', waiting))
            stack.enter_context(marked_phases(step.model.module, step.optim_wrapper))
            step(batch)
        mark('end')
        if isinstance(step.model, MMDistributedDataParallel):
            # Its last bucket is complete with the last gradient; then it waits for all of them.
            self.waits = [(self.buckets[-1][0], dict(self.phases)['update'])]

    def shifted(self) -> dict:
        """The timeline from 0 on."""
        zero = self.phases[0][1]
        return dict(
            phases=[(name, t - zero) for name, t in self.phases],
            buckets=[(start - zero, end - zero, size) for start, end, size in self.buckets],
            waits=[(start - zero, end - zero) for start, end in self.waits],
        )


def measure(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Measure all ways in one of the processes."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    MMLogger.get_current_instance().setLevel('WARNING')  # init_weights() logs every parameter.
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=args.processes
    )
    found: Dict[str, list] = {}
    for name, cfg in ways().items():
        step = WrappedStep(cfg, wrapped)
        batch = synthetic_batch(step.model.module, (args.batch, 3, args.size, args.size))
        found[name] = []
        for i in range(args.rounds + 1):
            timeline = Timeline()
            dist.barrier()
            timeline.record(step, batch)
            if i:  # The first one warms up.
                found[name].append(timeline.shifted())
    if rank == 0:
        Path(folder, 'found.json').write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def summary(timelines: List[dict]) -> Dict[str, float]:
    """Medians over the rounds: MiB, buckets, seconds of the step, under way, and waited."""

    def median(of) -> float:
        return statistics.median(map(of, timelines))

    return dict(
        mib=median(lambda t: sum(size for _, _, size in t['buckets']) / 2**20),
        buckets=median(lambda t: len(t['buckets'])),
        step=median(lambda t: t['phases'][-1][1]),
        under_way=median(lambda t: covered([(a, b) for a, b, _ in t['buckets']])),
        waited=median(lambda t: covered(t['waits'])),
    )


def covered(spans: List[Tuple[float, float]]) -> float:
    """The time that spans cover, those that overlap counted once."""
    total, end = 0.0, float('-inf')
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return total


def draw(found: Dict[str, list], path: Path) -> None:
    """The median step of each way: computing above, communication below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 1.7 * len(found)), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(found), 1, sharex=True)
    kinds = {}
    for axes, (name, timelines) in zip(rows, found.items()):
        chosen = sorted(timelines, key=lambda t: t['phases'][-1][1])[len(timelines) // 2]

        def bar(y, start, end, colour, kind, text='', axes=axes):
            # Short ones would vanish behind a white edge.
            drawn = axes.barh(
                y,
                end - start,
                left=start,
                height=0.8,
                color=colour,
                edgecolor='white',
                linewidth=0.5 if y == 1 else 0,
            )
            kinds.setdefault(kind, drawn)
            axes.text(
                (start + end) / 2, y, text, ha='center', va='center', fontsize=8, clip_on=True
            )

        for (phase, start), (_, end) in zip(chosen['phases'], chosen['phases'][1:]):
            backward = phase.endswith('backward')
            number = phase.split()[1] if phase.startswith('module') and not backward else ''
            bar(
                1,
                start,
                end,
                '#E69F00' if backward else '#009E73' if phase == 'update' else '#56B4E9',
                'backward' if backward else 'update' if phase == 'update' else 'forward and loss',
                number,
            )
        for start, end, _ in chosen['buckets']:
            bar(0, start, end, '#0072B2', 'gradients under way')
        for start, end in chosen['waits']:
            bar(-1, start, end, '#D55E00', 'waiting')
        axes.set_title(name, fontsize=11, loc='left')
        axes.set_yticks([1, 0, -1], ['compute', 'communicate', 'wait'], fontsize=9)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
    rows[-1].set_xlabel('time [s]')
    figure.legend(
        list(kinds.values()),
        list(kinds),
        loc='outside upper right',
        ncols=len(kinds),
        fontsize=9,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description='Communication of data parallel training')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--batch', type=int, default=2, help='images per process')
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--picture', type=Path, help='draw the median steps into this PNG file')
    parser.add_argument('--out', type=Path, help='also write the timelines to this JSON file')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (args, folder), args.processes)
        found = json.loads(Path(folder, 'found.json').read_text())
    table = Table(
        'training',
        'MiB sent',
        'buckets',
        'step [s]',
        'under way [s]',
        'waited [s]',
        'hidden [%]',
        title=f'{args.processes} processes, {args.batch} images of '
        f'{args.size}×{args.size} each, process 0, median of {args.rounds} steps',
    )
    for name, timelines in found.items():
        of = summary(timelines)
        hidden = 100 * (1 - of['waited'] / of['under_way'])
        table.add_row(
            name,
            f'{of["mib"]:.1f}',
            f'{of["buckets"]:.0f}',
            f'{of["step"]:.2f}',
            f'{of["under_way"]:.3f}',
            f'{of["waited"]:.3f}',
            f'{hidden:.0f}',
        )
    Console(width=110).print(table)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))
    if args.picture is not None:
        draw(found, args.picture)


if __name__ == '__main__':
    main()
