"""What parameters, gradients and the optimizer's state take in each of several processes.

    OMP_NUM_THREADS=1 python benchmarks/sharded.py [--processes 2] [--models DeiT-small]

Data parallel training by LocalDataParallel, where each process has all of them, against
LocalShardedDataParallel, with AdamW and eager steps, on one random image per process. Activations
are not counted, and neither are the flat copies that travel: at its largest, that of a module is as
large as its parameters, at times when its gradients are not there yet, or its parameters no more.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor
from wrapped_step import WrappedStep

from fba_mm import LocalDataParallel, LocalShardedDataParallel, localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.compat.torch_versions import DTensor
from fba_mm.config import load_config
from fba_mm.distributed.sharded_part import ShardedPart
from fba_mm.engine.local_optim_wrapper import LocalOptimWrapper

MODELS = {
    'RetinaNet-R50': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'light', 64),
    'DeiT-small': ('mmpretrain::deit/deit-small_4xb256_in1k.py', None, 224),
}
WRAPPERS = {'data parallel': LocalDataParallel, 'sharded': LocalShardedDataParallel}


def config_of(model: str, num_modules: str) -> Config:
    """A model's config for local learning, from scratch and with nothing frozen."""
    name, auxiliary, _ = MODELS[model]
    num_modules = int(num_modules) if num_modules.isdigit() else num_modules
    cfg = localize(load_config(name), num_modules, auxiliary=auxiliary, apply='eager')
    cfg.optim_wrapper = dict(
        type='LocalOptimWrapper', apply='eager', optimizer=dict(type='AdamW', lr=1e-4)
    )
    if model == 'RetinaNet-R50':
        cfg.model.backbone.backbone.update(init_cfg=None, frozen_stages=-1)
        cfg.model.bbox_head.loss_cls.type = 'SlicedFocalLoss'
    cfg.model.get('train_cfg', {}).pop('augments', None)
    return cfg


def tensors_of(step: WrappedStep) -> Iterator[Tensor]:
    """Parameters, whole and in pieces, their gradients, and the optimizer's state."""
    optimizer = step.optim_wrapper.optimizer
    held = [p for group in optimizer.param_groups for p in group['params']]
    for parameter in (*step.model.module.parameters(), *held):
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def bytes_of(step: WrappedStep) -> int:
    """Bytes of their storages, each counted once."""
    found: Dict[int, int] = {}
    for tensor in tensors_of(step):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = local.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def peak_of(step: WrappedStep, size: int) -> int:
    """The most bytes at once in the second of two training steps.

    Gradients grow in backward passes, and shrink when they are reduced or applied.
    """
    peaks: List[int] = []
    backward, reduce, apply = (
        LocalOptimWrapper._backward_now,
        ShardedPart.reduce,
        LocalOptimWrapper._apply_to,
    )

    def on(function):
        def run(*args, **kwargs):
            peaks.append(bytes_of(step))
            result = function(*args, **kwargs)
            peaks.append(bytes_of(step))
            return result

        return run

    batch = synthetic_batch(step.model.module, (1, 3, size, size))
    step(batch)
    with mock.patch.object(LocalOptimWrapper, '_backward_now', on(backward)), mock.patch.object(
        LocalOptimWrapper, '_apply_to', on(apply)
    ), mock.patch.object(ShardedPart, 'reduce', on(reduce)):
        step(batch)
    return max(peaks)


def measure(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Measure all ways in one of the processes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')  # init_weights() logs every parameter.
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=args.processes
    )
    found = []
    for model in args.models:
        size = MODELS[model][-1]
        for num_modules in args.modules:
            row = [model, num_modules]
            for wrapper in WRAPPERS.values():
                step = WrappedStep(config_of(model, num_modules), wrapper)
                if wrapper is LocalShardedDataParallel:
                    row.append(
                        max(sum(p.nbytes for p in part) for part in _held_together(step.model))
                    )
                row.append(peak_of(step, size))
                row.append(bytes_of(step))
            found.append(row)
            if rank == 0:
                print(*row, flush=True)
    totals = [None] * args.processes
    dist.all_gather_object(totals, found)
    if rank == 0:
        Path(folder, 'found.json').write_text(json.dumps(totals))
    dist.barrier()
    dist.destroy_process_group()


def _held_together(model: LocalShardedDataParallel) -> List[list]:
    *modules, rest = [part.pieces for part in model.placement.parts]
    return [*modules[:-1], modules[-1] + rest]


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory of sharded training')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--models', nargs='+', choices=list(MODELS), default=list(MODELS))
    parser.add_argument('--modules', nargs='+', default=['4', 'blocks'], help='K')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (args, folder), args.processes)
        found = json.loads(Path(folder, 'found.json').read_text())
    table = Table(
        'model',
        'K',
        'largest module',
        'data parallel, peak',
        'sharded, peak',
        'data parallel, between steps',
        'sharded, between steps',
        title=f'MiB in the process with the most of {args.processes}',
    )
    for rows in zip(*found):
        model, num_modules = rows[0][:2]
        parallel, parallel_rest, largest, sharded, sharded_rest = (
            f'{max(values) / 2**20:.0f}' for values in zip(*(row[2:] for row in rows))
        )
        table.add_row(model, num_modules, largest, parallel, sharded, parallel_rest, sharded_rest)
    Console(width=110).print(table)


if __name__ == '__main__':
    main()
