"""Trainings of ResNet-32 side by side, as many epochs as fit into the time that is left."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Dict, List

from classification import COMPARISON
from journal import Row
from rich.console import Console
from seeded_trainings import accuracy_and_time, run_all, train
from steps import free

from fba_mm.analysis.training_profile import seconds_by_turns

METHODS = ('bp', 'fba', 'auglocal')
# Imports, reading the images, and the test.
START_SECONDS = 60
TRAINING_IMAGES, BATCH, LR = 50_000, 256, 0.2


def trained(deadline: float, small: bool, device: str) -> Dict[str, dict]:
    """Train all methods at a time, with the same budget.

    Args:
        deadline: ``time.time()`` at which all have to be done.
        small: Train on a few digits instead.
        device: ``'cuda'`` or ``'cpu'``, to choose the number of epochs.

    Returns:
        By method: accuracy in percent, seconds per epoch and per step, epochs.
    """
    args = argparse.Namespace(
        data='digits' if small else 'cifar10_jpeg',
        network='resnet32',
        images=64 if small else None,
        length=1,  # Epochs.
        batch=32 if small else BATCH,
        size=None,
        methods=METHODS[:2] if small else METHODS,
    )
    variants = {variant.method: variant for variant in COMPARISON.variants(args)}
    steps = {
        method: COMPARISON.training_step(COMPARISON.training_config(args, variant, 0), device)
        for method, variant in variants.items()
    }
    seconds = seconds_by_turns(steps, device, 1 if small else 10)
    del steps
    free(device)
    if not small:
        # Side by side they slow each other down, at worst as if one came after the other.
        epoch = sum(seconds.values()) * TRAINING_IMAGES / BATCH
        left = deadline - time.time() - START_SECONDS
        args.length = int(min(max(0.8 * left / epoch, 1), 60))
    with tempfile.TemporaryDirectory() as folder:

        def one(method: str, seed: int) -> dict:
            config = COMPARISON.training_config(args, variants[method], seed, lr=LR)
            return train(Path(folder, method), config, accuracy_and_time, threads=2)

        results = run_all(list(variants), [0], one, str, len(variants), Console())
    return {
        method: dict(by_seed[0], epochs=args.length, step_ms=1000 * seconds[method])
        for method, by_seed in results.items()
    }


def rows(place: dict) -> List[Row]:
    """The one row: all trainings, so that their budget is the same.

    Args:
        place: Device and versions.
    """
    small, device = place['small'], place['device']
    data = 'digits' if small else 'CIFAR-10 as JPEG files'
    return [
        Row(
            f'training/ResNet-32, {data}',
            lambda deadline: trained(deadline, small, device),
            480,
            place,
        )
    ]
