"""Memory and time of a training step in an ordinary PyTorch loop: torchvision's ResNet-50.

    python benchmarks/plain_pytorch.py
    python benchmarks/plain_pytorch.py --network resnet18 --turns 7

Peaks are those of all tensors, on the CPU, above parameters, buffers and momentum; operations and
times are those of the whole step over back-propagation's, times medians of several turns of all
ways, one after the other.
"""

import argparse
import statistics
import time

import torch
import torchvision
from torch.nn import functional as F

from fba_mm import LocalLearning
from fba_mm.analysis.memory import measure_step
from fba_mm.analysis.operations import OperationCounter

WAYS = {
    'BP': None,
    'checkpointing, 3 spans, exact': dict(num_modules=1, recompute=3),
    'checkpointing, each block, exact': dict(num_modules=1, recompute='blocks'),
    'K = 4, Greedy': dict(num_modules=4, auxiliary='Greedy'),
    'K = 4, DGL': dict(num_modules=4, auxiliary='DGL'),
    'K = 4, SLM': dict(num_modules=4, auxiliary='SLM'),
    'each block, Greedy': dict(num_modules='blocks', auxiliary='Greedy'),
}


def step_of(network, way, images, labels):
    """One training step of a way, to be called again and again."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, network)(weights=None)
    local = None if way is None else LocalLearning(model, F.cross_entropy, **way)
    parameters = model.parameters() if local is None else local.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    eager = optimizer if local is not None and way['num_modules'] != 1 else None

    def step():
        if local is None:
            loss = F.cross_entropy(model(images), labels)
        else:
            loss = local(images, labels, eager)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, [model, [] if local is None else local.auxiliary]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--network', default='resnet50', help="a ResNet of torchvision's")
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224, help='of the images, in pixels')
    parser.add_argument('--turns', type=int, default=5)
    args = parser.parse_args()
    images = torch.rand(args.batch, 3, args.size, args.size)
    labels = torch.randint(1000, (args.batch,))
    rows, steps, times = {}, {}, {}
    for name, way in WAYS.items():
        step, watch = step_of(args.network, way, images, labels)
        step()
        peak = measure_step(step, watch=watch).peak_bytes / 2**20
        with OperationCounter() as counter:
            step()
        rows[name], steps[name], times[name] = (peak, counter.flops), step, []
    for _ in range(args.turns):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    print(f'{args.network}, {args.batch}×3×{args.size}×{args.size}\n')
    print('| way | peak | MiB | operations | time | s |')
    print('|---|---|---|---|---|---|')
    base, base_flops = rows['BP']
    base_time = statistics.median(times['BP'])
    for name, (peak, flops) in rows.items():
        seconds = statistics.median(times[name])
        print(
            f'| {name} | {peak / base:.2f} | {peak:.0f} | {flops / base_flops:.2f} | '
            f'{seconds / base_time:.2f} | {seconds:.2f} |'
        )


if __name__ == '__main__':
    main()
