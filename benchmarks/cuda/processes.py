"""Several processes: what of the communication is hidden, and what modules in parallel gain."""

import os
import statistics
import time
import traceback
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Callable, Dict, List
from unittest import mock

import torch
import torch.distributed as dist
from journal import Journal, Row
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from steps import MIB, Ready, all_bytes, free, network
from torch import Tensor, nn
from wrapped_step import WrappedStep

from fba_mm import LocalDataParallel, LocalModuleParallel, LocalShardedDataParallel, localize
from fba_mm.analysis import TrainingStep
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_profile import seconds_of
from fba_mm.local.partition.balance import smallest_maximum

BUCKET_MB = 25
NUM_MODULES = 4
# A lost process is noticed after so long.
TIMEOUT = timedelta(seconds=90)
# In the place of a handle, where nothing was sent.
_DONE = SimpleNamespace(wait=lambda: None)


def work_in_processes(place: dict, journal: Journal, deadline: float) -> None:
    """Go through the rows in all processes that torchrun has started.

    Args:
        place: Device and versions.
        journal: The first process's results go there, and any process's error.
        deadline: ``time.time()`` after which no row begins.
    """
    if place['device'] == 'cuda':
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    dist.init_process_group('nccl' if place['device'] == 'cuda' else 'gloo', timeout=TIMEOUT)
    place = dict(place, processes=dist.get_world_size())
    start = time.time()
    while True:
        # The first process decides for all.
        chosen = [None]
        if dist.get_rank() == 0 and time.time() < deadline:
            pending = [row.name for row in journal.pending(rows(place), start)]
            chosen = pending[:1] or [None]
        dist.broadcast_object_list(chosen)
        if chosen == [None]:
            break
        row = next(row for row in rows(place) if row.name == chosen[0])
        line, begun = dict(row=row.name, place=place, worker=os.getpid()), time.time()
        try:
            found = row.run(deadline)
        except Exception as error:
            traceback.print_exc()
            message = f'{type(error).__name__}: {error}'[:2000]
            journal.append(**line, seconds=time.time() - begun, error=message)
            raise  # The others may wait for this one: they end with it.
        if dist.get_rank() == 0:
            journal.append(**line, seconds=time.time() - begun, found=found)
        free(place['device'])
    dist.destroy_process_group()


def _ready(cfg: Config, wrap: Callable, shape: tuple, device: str) -> Ready:
    torch.manual_seed(0)
    with quiet():
        step = WrappedStep(cfg, wrap, device)
    run = Ready(step, synthetic_batch(getattr(step.model, 'module', step.model), shape))
    run(), run()
    return run


def _median_ms(run: Callable[[], object], device: str, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        dist.barrier()
        times.append(1000 * seconds_of(run, device))
    # The slowest process's: the others wait for it.
    found = torch.tensor(statistics.median(times), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


class _DataParallel(MMDistributedDataParallel):
    """Torch's, with gradients that can be told to stay where they are."""

    silent = False

    def __init__(self, model: nn.Module):
        super().__init__(model, bucket_cap_mb=BUCKET_MB, broadcast_buffers=False)
        self.register_comm_hook(None, self._mean)

    @staticmethod
    def _mean(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        flat = bucket.buffer().div_(dist.get_world_size())
        if _DataParallel.silent:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(flat)
            return done
        return dist.all_reduce(flat, async_op=True).get_future().then(lambda f: f.value()[0])


def data_parallel(name: str, device: str, rounds: int) -> Dict[str, dict]:
    """What of the gradients' way between processes falls behind computing.

    Args:
        name: Of the network.
        device: ``'cuda'`` or ``'cpu'``.
        rounds: Timed steps.

    Returns:
        By way: milliseconds of a step, of one that sends nothing, of sending alone, and the share
        of that which is hidden, in percent.
    """
    cfg, shape = network(name)
    ways = {
        'BP, DistributedDataParallel': (cfg, _DataParallel),
        "local, apply='end'": (_local(cfg, 'end'), partial(LocalDataParallel, bucket_cap_mb=25)),
        "local, apply='eager'": (
            _local(cfg, 'eager'),
            partial(LocalDataParallel, bucket_cap_mb=25),
        ),
    }
    found = {}
    for way, (changed, wrap) in ways.items():
        run = _ready(changed, wrap, shape, device)
        sent = sum(p.numel() for p in run.step.model.parameters() if p.requires_grad)
        together = _median_ms(run, device, rounds)
        with mock.patch.object(_DataParallel, 'silent', True), mock.patch(
            'torch.distributed.all_reduce', lambda *_, **__: _DONE
        ):
            alone = [seconds_of(run, device) for _ in range(rounds)]
        dist.barrier()
        sending = _median_ms(partial(_send, sent, device), device, rounds)
        exposed = together - 1000 * statistics.median(alone)
        found[way] = dict(
            ms=together,
            ms_without=1000 * statistics.median(alone),
            ms_sending=sending,
            hidden=100 * (1 - min(max(exposed / sending, 0), 1)),
        )
        free(device)
    return found


def _local(cfg: Config, apply: str) -> Config:
    with quiet():
        return localize(cfg, NUM_MODULES, apply=apply)


def _send(numel: int, device: str) -> None:
    """Reduce so many numbers, in buckets, and wait."""
    bucket = BUCKET_MB * MIB // 4
    parts = [
        torch.zeros(min(bucket, numel - start), device=device) for start in range(0, numel, bucket)
    ]
    for handle in [dist.all_reduce(part, async_op=True) for part in parts]:
        handle.wait()


def sharded(name: str, device: str, rounds: int) -> Dict[str, dict]:
    """Time and memory with all parameters in each process, and with a part of each.

    Args:
        name: Of the network.
        device: ``'cuda'`` or ``'cpu'``.
        rounds: Timed steps.
    """
    cfg, shape = network(name)
    found = {}
    for wrapper in (LocalDataParallel, LocalShardedDataParallel):
        run = _ready(_local(cfg, 'eager'), wrapper, shape, device)
        ms = _median_ms(run, device, rounds)
        found[wrapper.__name__] = dict(ms=ms, mib=all_bytes(run, device) / MIB)
        del run
        free(device)
    return found


def module_seconds(cfg: Config, shape: tuple, device: str) -> List[float]:
    """The time that each module takes of a step in one process.

    Args:
        cfg: A local config.
        shape: Of the batch.
        device: ``'cuda'`` or ``'cpu'``.
    """
    step = TrainingStep(cfg, device)
    backbone, batch = step.model.backbone, synthetic_batch(step.model, shape)
    step(batch)
    entered: List[float] = []

    def enter(*_: object) -> None:
        if device == 'cuda':
            torch.cuda.synchronize()
        entered.append(time.perf_counter())

    for module in backbone.module_segments:
        first = backbone.segments[module[0]].submodules[0]
        backbone.backbone.get_submodule(first).register_forward_pre_hook(enter)
    found = []
    for _ in range(3):
        entered.clear()
        step(batch)
        enter()
        found.append([end - start for start, end in zip(entered, entered[1:])])
    return [statistics.median(times) for times in zip(*found)]


def module_parallel(name: str, device: str, rounds: int) -> Dict[str, dict]:
    """What is gained by modules in processes of their own, on batches one behind the other.

    Args:
        name: Of the network.
        device: ``'cuda'`` or ``'cpu'``.
        rounds: Timed runs of several steps.

    Returns:
        Milliseconds of a step, and for several processes its gain over one, the most that the
        placement allows, and the share of that, in percent.
    """
    cfg, shape = network(name)
    cfg = _local(cfg, 'eager')
    seconds = module_seconds(cfg, shape, device)
    placed = [[end - start for start, end in smallest_maximum(seconds, dist.get_world_size())]]
    dist.broadcast_object_list(placed)
    run = _ready(cfg, lambda model: model, shape, device)
    one = _median_ms(run, device, rounds)
    del run
    free(device)
    several = 6
    run = _ready(cfg, partial(LocalModuleParallel, modules_per_process=placed[0]), shape, device)

    def steps() -> None:
        for _ in range(several):
            run()

    ms = _median_ms(steps, device, rounds) / several
    ends = [sum(placed[0][: i + 1]) for i in range(len(placed[0]))]
    parts = [sum(seconds[end - count : end]) for end, count in zip(ends, placed[0])]
    bound = sum(parts) / max(parts)
    return {
        'one process': dict(ms=one),
        f'modules {placed[0]}': dict(
            ms=ms, gain=one / ms, at_most=bound, overlap=100 * one / ms / bound
        ),
    }


def rows(place: dict) -> List[Row]:
    """The rows to measure, most telling first.

    Args:
        place: Device and versions.
    """
    device, small = place['device'], place['small']
    one, other = ('small_retinanet', 'small_resnet') if small else ('retinanet_r50', 'resnet50')
    rounds = 2 if small else 10
    chosen = [(data_parallel, one), (sharded, one), (module_parallel, other), (sharded, other)]
    return [
        Row(
            f'processes/{kind.__name__.replace("_", " ")}, {name}',
            lambda _, kind=kind, name=name: kind(name, device, rounds),
            120,
            place,
        )
        for kind, name in chosen
    ]
