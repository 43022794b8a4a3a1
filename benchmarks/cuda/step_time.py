"""Time of training steps, what makes the host wait in them, and what the device computes."""

import os
import statistics
import time
import warnings
from collections import Counter
from functools import partial
from typing import Dict, List, Sequence

import torch
from journal import Row
from steps import (
    BUDGETS,
    MIB,
    SMALL,
    activation_budget,
    all_bytes,
    attempt,
    free,
    network,
    ready,
)

from fba_mm.analysis.training_profile import seconds_of

WAYS = ('shipped', 'with_cp', 'checkpoint', 'local', 'local_blocks')
# Network, images, data type; most telling first.
FIRST = [
    ('retinanet_r50', 2, 'float32'),
    ('retinanet_r50', 2, 'bfloat16'),
    ('faster_rcnn_r50', 2, 'float32'),
    ('retinanet_r50', 8, 'bfloat16'),
    ('mask_rcnn_swin_t', 2, 'bfloat16'),
    ('retinanet_r152', 2, 'bfloat16'),
]
NETWORKS = (
    'retinanet_r50',
    'retinanet_r101',
    'retinanet_r152',
    'faster_rcnn_r50',
    'mask_rcnn_swin_t',
)
REST = [
    (name, images, dtype)
    for name in NETWORKS
    for images in (2, 8)
    for dtype in ('float32', 'bfloat16')
    if (name, images, dtype) not in FIRST
]


def timed(
    name: str, images: int, dtype: str, device: str, ways: Sequence[str] = WAYS, seconds: float = 12
) -> Dict[str, dict]:
    """Time, by turns, the ways to train a network.

    Args:
        name: Of the network.
        images: Of a batch.
        dtype: ``'float32'``, or that of autocast.
        device: ``'cuda'`` or ``'cpu'``.
        ways: Keys of :data:`steps.CONFIGURE`.
        seconds: About how long to time.

    Returns:
        By way: milliseconds of each step, their median, the peak in MiB, and where the host waited.
    """
    cfg, (_, *size) = network(name)
    shape = (images, *size)
    steps, found = {}, {}
    for way in ways:

        def warm(way=way) -> dict:
            with activation_budget(way):
                run = ready(cfg, way, shape, device, dtype)
                if run is None:
                    return None
                run(), run()
            steps[way] = run
            return dict(mib=all_bytes(run, device) / MIB, waits=host_waits(run, device))

        found[way] = attempt(warm, device)
        if found[way] is None or 'error' in found[way]:
            steps.pop(way, None)
        free(device)
    times: Dict[str, List[float]] = {way: [] for way in steps}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end and rounds < 30:
        rounds += 1
        for way, run in list(steps.items()):
            taken = attempt(partial(seconds_of, run, device), device)
            if isinstance(taken, dict):
                found[way] = taken  # Beside the others' weights it doesn't fit.
                del steps[way]
            else:
                times[way].append(1000 * taken)
    for way in steps:
        found[way].update(ms=times[way], median_ms=statistics.median(times[way]))
    return {way: one for way, one in found.items() if one is not None}


def host_waits(run, device: str) -> dict:
    """How often the host waits for the device in a step, and in which lines.

    Args:
        run: A step that has run before.
        device: Where it computes. On the CPU nothing is waited for.
    """
    if device == 'cuda':
        torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            run()
    finally:
        if device == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
    places = Counter(
        f'{os.sep.join(warning.filename.split(os.sep)[-3:])}:{warning.lineno}'
        for warning in caught
        if 'synchronizing CUDA operation' in str(warning.message)
    )
    return dict(count=sum(places.values()), places=dict(places.most_common(15)))


def kernels(name: str, images: int, dtype: str, device: str) -> Dict[str, dict]:
    """What the device computes in a step: kernels, the time they take of the step's, copies.

    Args:
        name: Of the network.
        images: Of a batch.
        dtype: ``'float32'``, or that of autocast.
        device: ``'cuda'`` or ``'cpu'``.
    """
    cfg, (_, *size) = network(name)
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if device == 'cuda' else [activity.CPU]

    def profile(way: str) -> dict:
        free(device)
        run = ready(cfg, way, (images, *size), device, dtype)
        run(), run(), run()
        with torch.profiler.profile(activities=activities) as profiler:
            seconds = seconds_of(run, device)
        events = profiler.key_averages()
        on_device = [e for e in events if e.device_type.name == 'CUDA' or device == 'cpu']
        busy = {e.key: _self_microseconds(e, device) for e in on_device}
        calls = {e.key: e.count for e in events}
        top = sorted(busy, key=busy.get, reverse=True)[:12]
        return dict(
            ms=1000 * seconds,
            busy_ms=sum(busy.values()) / 1000,
            launches=sum(n for key, n in calls.items() if key.startswith('cudaLaunchKernel')),
            synchronizations=sum(n for key, n in calls.items() if 'Synchronize' in key),
            copies=sum(n for key, n in calls.items() if key.startswith('cudaMemcpy')),
            top={key[:90]: [busy[key] / 1000, calls[key]] for key in top},
        )

    return {way: attempt(partial(profile, way), device) for way in ('shipped', 'local')}


def _self_microseconds(event, device: str) -> float:
    if device == 'cpu':
        return event.self_cpu_time_total
    return event.self_device_time_total


def rows(place: dict) -> List[Row]:
    """The rows to measure, most telling first.

    Args:
        place: Device and versions.
    """
    device, small = place['device'], place['small']
    wanted = [(name, 2, dtype) for name in SMALL for dtype in ('float32', 'bfloat16')]
    found = [
        Row(
            f'time/{name}, {images} images, {dtype}',
            lambda _, one=(name, images, dtype): timed(*one, device, seconds=0 if small else 12),
            120,
            place,
        )
        for name, images, dtype in (wanted if small else [*FIRST, *REST])
    ]
    name, images = (next(iter(SMALL)), 2) if small else ('retinanet_r50', 2)
    found.insert(
        2,
        Row(
            f'kernels/{name}, {images} images, float32',
            lambda _: kernels(name, images, 'float32', device),
            90,
            place,
        ),
    )
    found.append(
        Row(
            f'time/{name}, {images} images, float32, compiled',
            lambda _: timed(name, images, 'float32', device, ('shipped', *BUDGETS, 'checkpoint')),
            240,
            place,
        )
    )
    return found
