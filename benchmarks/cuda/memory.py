"""Memory of training steps: what is predicted, and what the allocator says."""

from functools import partial
from typing import Dict, List
from unittest import mock

import torch
from journal import Row
from real_size_memory import WAYS, WORKS
from steps import MIB, SMALL, all_bytes, attempt, free, network, ready

from fba_mm.analysis import predict_memory
from fba_mm.analysis.simulated_step import quiet

FIRST = ['retinanet_r50', 'faster_rcnn_r50', 'fcn_r50', 'resnet50', 'mask_rcnn_swin_t', 'edsr']


def predicted(name: str) -> Dict[str, dict]:
    """What each way to train a network is predicted to take on a GPU, without one.

    Args:
        name: Of the network.
    """
    cfg, shape = network(name)

    def predict(configure) -> dict:
        with quiet():
            changed = configure(cfg)
        if changed is None:
            return None
        found = predict_memory(changed, shape)
        return dict(mib=found.total / MIB, operations=found.operations)

    # Optimizers take all parameters at once on a GPU, and bytes are cheaper there.
    with mock.patch('fba_mm.analysis.simulated_step.get_device', lambda: 'cuda'), mock.patch(
        'fba_mm.analysis.memory_fit.get_device', lambda: 'cuda'
    ):
        found = {
            way: attempt(partial(predict, configure), 'cpu') for way, (_, configure) in WAYS.items()
        }
    return {way: one for way, one in found.items() if one is not None}


def measured(name: str, device: str) -> Dict[str, dict]:
    """What each way to train a network takes, in the second step or the third.

    Args:
        name: Of the network.
        device: ``'cuda'`` or ``'cpu'``.

    Returns:
        By way, in MiB: ``mib``, tensors in the allocator's blocks at the peak; ``reserved``, what
        the allocator had from the device; ``taken``, what the device had given away, CUDA's context
        included.
    """
    cfg, shape = network(name)

    def measure(way: str) -> dict:
        free(device)
        run = ready(cfg, way, shape, device)
        if run is None:
            return None
        run(), run()
        found = dict(mib=all_bytes(run, device) / MIB)
        if device == 'cuda':
            left, total = torch.cuda.mem_get_info()
            found.update(
                reserved=torch.cuda.max_memory_reserved() / MIB, taken=(total - left) / MIB
            )
        return found

    found = {way: attempt(partial(measure, way), device) for way in WAYS}
    return {way: one for way, one in found.items() if one is not None}


def rows(place: dict) -> List[Row]:
    """The rows to measure, most telling first.

    Args:
        place: Device and versions.
    """
    names = list(SMALL) if place['small'] else [*FIRST, *(n for n in WORKS if n not in FIRST)]
    device = place['device']
    return [
        Row(f'memory/{name}', lambda _, name=name: measured(name, device), 90, place)
        for name in names
    ]


def predictions(place: dict) -> List[Row]:
    """The rows to predict. They need no device and depend on none.

    Args:
        place: Device and versions.
    """
    names = list(SMALL) if place['small'] else [*FIRST, *(n for n in WORKS if n not in FIRST)]
    here = dict(torch=place['torch'].split('+')[0], small=place['small'])
    return [
        Row(f'predicted/{name}', lambda _, name=name: predicted(name), 240, here) for name in names
    ]
