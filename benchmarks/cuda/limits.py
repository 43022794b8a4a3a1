"""The largest batch, and the largest image, that a training step takes in so much memory."""

from typing import Callable, Dict, List, Optional

import torch
from journal import Row
from steps import MIB, all_bytes, attempt, free, network, ready

from fba_mm.analysis.synthetic_batch import synthetic_batch

WAYS = ('shipped', 'with_cp', 'least_exact', 'local', 'local_blocks', 'least_local')
GIB = 2**30


def largest(name: str, way: str, what: str, caps: List[int], device: str) -> Dict[str, object]:
    """The largest batch or image with which a way to train fits.

    Args:
        name: Of the network.
        way: A key of :data:`steps.CONFIGURE`.
        what: ``'batch'``: images of the network's own size; ``'image'``: pixels of one image's
            shorter side, in its own proportions.
        caps: Bytes that the allocator may take. A card has some hundred MiB more, for CUDA itself.
        device: ``'cuda'`` or ``'cpu'``.

    Returns:
        By cap in MiB: the number, 0 if nothing fits.
    """
    cfg, (_, channels, height, width) = network(name)
    unit = 1 if what == 'batch' else 32

    def shape(number: int) -> tuple:
        if what == 'batch':
            return (number, channels, height, width)
        return (1, channels, number, round(number * width / height))

    run = ready(cfg, way, shape(1 if what == 'batch' else height), device)
    if run is None:
        return {}

    def peak(number: int, cap: Optional[int]) -> Optional[int]:
        """Bytes of a step, or None if they are more than the cap."""
        free(device)
        if device == 'cuda':
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else min(cap / total, 1))

        def step() -> int:
            run.batch = synthetic_batch(run.step.model, shape(number))
            run()
            return all_bytes(run, device)

        found = attempt(step, device)
        if isinstance(found, dict):
            run.forget()
            if found['error'] != 'out of memory':
                raise RuntimeError(found['error'])
            return None
        # The allocator has the last word on CUDA: beside tensors it counts what it can't use.
        return None if device == 'cpu' and cap is not None and found > cap else found

    # Memory grows with the pixels.
    power = 1 if what == 'batch' else 2
    # Smaller images than these leave batch norm a single value, in the top maps of a pyramid.
    starts = (1, 2) if what == 'batch' else (max(6, height // 64), max(8, height // 32))
    known = {count**power: peak(count * unit, None) for count in starts}
    found = {}
    for cap in caps:
        count = _search(lambda count, cap=cap: peak(count * unit, cap), known, power, cap)
        found[f'{cap // MIB}'] = count * unit
    if device == 'cuda':
        torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def _search(
    peak: Callable[[int], Optional[int]], known: Dict[int, int], power: int, cap: int
) -> int:
    """The largest count that fits, to 2 %; 0 if the least that is known doesn't.

    Args:
        peak: From a count to bytes, or None if these are too many.
        known: From counts, to that power, to bytes; what is found is added.
        power: Bytes grow by it.
        cap: Bytes.
    """
    low, high, share = 0, None, 16
    least = min(known) ** (1 / power)
    while high is None or high - low > max(1, low // 50):
        (x0, y0), (x1, y1) = sorted(known.items())[-2:]
        slope = max(y1 - y0, 1) / (x1 - x0)
        count = int(max(x1 + (cap - y1) / slope, 0) ** (1 / power))
        # Where the optimizer's step is the peak, images seem to take nothing yet.
        count = min(count, 4 * round(x1 ** (1 / power)))
        if high is not None and count >= high:
            # What the allocator can't use comes on top: a little below, then further down.
            near, share = high - max(1, high // share), max(share // 2, 2)
            count = max(near, (low + high) // 2)
        count = max(count, low + 1)
        nbytes = peak(count) if count >= least else None
        if nbytes is None:
            high = count
        else:
            low, known[count**power] = count, nbytes
    return low


def rows(place: dict) -> List[Row]:
    """The rows to measure, most telling first.

    Args:
        place: Device and versions.
    """
    device, small = place['device'], place['small']
    if small:
        name, caps, ways = 'small_retinanet', [8 * MIB, 16 * MIB], ('shipped', 'least_local')
    else:
        total = torch.cuda.get_device_properties(0).total_memory if device == 'cuda' else 2**63
        name, caps, ways = 'retinanet_r50', [12 * GIB, 24 * GIB, 80 * GIB], WAYS
        caps = [cap for cap in caps if cap <= total]
    return [
        Row(
            f'largest {what}/{name}, {way}',
            lambda _, one=(name, way, what, caps): largest(*one, device),
            120,
            place,
        )
        for what in ('batch', 'image')
        for way in ways
    ]
