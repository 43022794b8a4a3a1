"""Batches whose random augmentation depends on the seed and their place in the training alone."""

import itertools
import random
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, IterableDataset

# What draws are for, so that no two things share them.
_SAMPLE, _ORDER, ITERATION = 1, 2, 3


def seed_generators(*entropy: int) -> None:
    """Seed the global random generators of Python, NumPy and torch on the CPU.

    Args:
        *entropy: As many numbers from 0 each time; others give other draws.
    """
    words = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # Not torch.manual_seed(), which takes ten times as long for the sake of devices.
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))


class SeededIndices:
    """Indices of a batch; iterating over them seeds the random generators for each sample.

    The dataloader iterates where it loads the samples: in a worker, or in the main process.

    Args:
        indices: What the batch sampler gave.
        entropy: For :func:`seed_generators`, the same for all samples of a pass over the data.
        first: The first sample's number in this pass, over all processes.
        stride: Difference to the next one's.
    """

    def __init__(self, indices: Sequence[Any], entropy: Sequence[int], first: int, stride: int):
        self.indices, self.entropy, self.first, self.stride = indices, entropy, first, stride

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        for i, index in enumerate(self.indices):
            seed_generators(*self.entropy, self.first + i * self.stride)
            yield index


class SeededBatches:
    """Takes the place of a dataloader's batch sampler: the same batches, each sample seeded.

    A sample's augmentation depends on the seed, the number of the pass over the data and the
    sample's number in it. It is the same in a training that was resumed, and with any number of
    workers; with MMEngine's samplers also in any number of processes that share a batch.

    Args:
        batch_sampler: The dataloader's own; everything else that is asked of it is asked of this.
        seed: What the draws depend on.
        number_of_pass: Gives the number of the pass that begins; None for a loop that knows no
            epochs: passes follow each other without an end, and samples are numbered through.
        skip: Leave out so many batches of the first pass.
    """

    def __init__(
        self,
        batch_sampler: Any,
        seed: int,
        number_of_pass: Optional[Callable[[], int]] = None,
        skip: int = 0,
    ):
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.skip = skip
        self._number_of_pass = number_of_pass
        # Processes that train on the same images, as those with modules of their own do, have
        # samplers that say so.
        self.sampler = getattr(batch_sampler, 'sampler', None)
        self._rank = getattr(self.sampler, 'rank', get_rank())
        self._world_size = getattr(self.sampler, 'world_size', get_world_size())

    def __getattr__(self, name: str) -> Any:
        if name == 'batch_sampler':  # While it is being copied.
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SeededIndices]:
        skip, self.skip = self.skip, 0
        first_pass = 0 if self._number_of_pass is None else self._number_of_pass()
        samples = batches = 0
        for turn in itertools.count():
            if turn and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(turn)
            # torch's own samplers draw the order of a pass from the global generator.
            seed_generators(_ORDER, self.seed, first_pass + turn)
            before = batches
            for indices in self.batch_sampler:
                if batches >= skip:
                    yield SeededIndices(
                        list(indices),
                        (_SAMPLE, self.seed, first_pass),
                        samples * self._world_size + self._rank,
                        self._world_size,
                    )
                samples += len(indices)
                batches += 1
            if self._number_of_pass is not None or batches == before:
                return


def seed_batches(dataloader: Any, *args: Any, **kwargs: Any) -> Optional[SeededBatches]:
    """Let a dataloader seed its samples; before it is iterated over.

    Args:
        dataloader: A dataloader with a batch sampler; others are left as they are.
        *args: Of :class:`SeededBatches`.
        **kwargs: Of :class:`SeededBatches`.

    Returns:
        What gives its batches from now on, or None.
    """
    if (
        not isinstance(dataloader, DataLoader)
        or dataloader.batch_sampler is None
        or isinstance(dataloader.dataset, IterableDataset)
    ):
        return None
    inner = dataloader.batch_sampler
    if isinstance(inner, SeededBatches):  # Of a former training with the same dataloader.
        inner = inner.batch_sampler
    # The dataloader guards its attributes, but asks for this one anew for each pass.
    batches = vars(dataloader)['batch_sampler'] = SeededBatches(inner, *args, **kwargs)
    return batches
