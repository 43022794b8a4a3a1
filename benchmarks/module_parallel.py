"""Images per second in several processes: data parallel and module parallel training.

    OMP_NUM_THREADS=1 python benchmarks/module_parallel.py [--models DeiT-small] [--rounds 8]

Processes on this machine that talk through gloo, one thread each. All ways train on the same number
of images per step: data parallel processes have a part of them each, module parallel ones have all
of them and a part of the modules, which are placed so that their processes take about the same
time. Ways take turns, a few steps at a time, so that what else the machine does meets all alike.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Dict, List

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from rich.console import Console
from rich.table import Table
from wrapped_step import WrappedStep

from fba_mm import LocalDataParallel, LocalModuleParallel, localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_profile import seconds_of
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.config import load_config
from fba_mm.local.partition.balance import smallest_maximum

# Config, and side of the images in px.
MODELS = {
    'ResNet-50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 128),
    'DeiT-small': ('mmpretrain::deit/deit-small_4xb256_in1k.py', 224),
}
WAYS = {
    'BP, data parallel': MMDistributedDataParallel,
    'FBA, data parallel': LocalDataParallel,
    'FBA, module parallel': LocalModuleParallel,
}


def configs(model: str, num_modules: int) -> Dict[bool, Config]:
    """The config of back-propagation (False) and of FBA (True), from scratch, in float32."""
    stock = load_config(MODELS[model][0])
    stock.model.get('train_cfg', {}).pop('augments', None)
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
    stock.optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer)
    return {False: stock, True: localize(stock, num_modules, apply='eager')}


def module_seconds(cfg: Config, batch: int, size: int) -> List[float]:
    """The time that each module takes of a step in one process."""
    step = TrainingStep(cfg)
    backbone = step.model.backbone
    data = synthetic_batch(step.model, (batch, 3, size, size))
    step(data)
    entered: List[float] = []
    for module in backbone.module_segments:
        first = backbone.segments[module[0]].submodules[0]
        backbone.backbone.get_submodule(first).register_forward_pre_hook(
            lambda *_: entered.append(time.perf_counter())
        )
    found = []
    for _ in range(3):
        entered.clear()
        step(data)
        entered.append(time.perf_counter())
        found.append([end - start for start, end in zip(entered, entered[1:])])
    return [statistics.median(times) for times in zip(*found)]


def measure(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Measure all ways in one of the processes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=args.processes
    )
    found = {}
    for model in args.models:
        size = MODELS[model][-1]
        cfgs = configs(model, args.modules)
        seconds = module_seconds(cfgs[True], args.batch, size)
        placed = [[end - start for start, end in smallest_maximum(seconds, args.processes)]]
        dist.broadcast_object_list(placed)
        steps, batches = {}, {}
        for name, wrapper in WAYS.items():
            apart = wrapper is LocalModuleParallel
            if apart:
                wrapper = partial(wrapper, modules_per_process=placed[0])
            steps[name] = WrappedStep(cfgs[name.startswith('FBA')], wrapper)
            images = args.batch if apart else args.batch // args.processes
            batches[name] = synthetic_batch(steps[name].model.module, (images, 3, size, size))
        times: Dict[str, List[float]] = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name, step in steps.items():
                dist.barrier()
                times[name].append(seconds_of(partial(_several, step, batches[name], args), 'cpu'))
        found[model] = dict(times=times, modules=placed[0])
    if rank == 0:
        Path(folder, 'found.json').write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _several(step: TrainingStep, batch: dict, args: argparse.Namespace) -> None:
    for _ in range(args.steps):
        step(batch)
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description='Throughput of several processes')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--models', nargs='+', choices=list(MODELS), default=list(MODELS))
    parser.add_argument('--modules', type=int, default=4, help='K')
    parser.add_argument('--batch', type=int, default=8, help='images of a step, in all processes')
    parser.add_argument(
        '--steps',
        type=int,
        default=4,
        help='of a round; module parallel training fills its line in the first',
    )
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (args, folder), args.processes)
        found = json.loads(Path(folder, 'found.json').read_text())
    table = Table(
        'model',
        'training',
        'images / s',
        'over BP',
        'modules per process',
        title=f'{args.processes} processes, K={args.modules}, {args.batch} images per step, '
        f'median of {args.rounds} rounds of {args.steps} steps',
    )
    for model, of in found.items():
        rates = {
            name: args.batch * args.steps / statistics.median(times)
            for name, times in of['times'].items()
        }
        for name, rate in rates.items():
            table.add_row(
                model,
                name,
                f'{rate:.2f}',
                f'{rate / rates["BP, data parallel"]:.2f}',
                str(of['modules']) if name == 'FBA, module parallel' else '–',
            )
    Console(width=110).print(table)


if __name__ == '__main__':
    main()
