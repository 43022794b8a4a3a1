"""Samplers for processes that train on the same images, not on a part each."""

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class UndividedSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler`` as one process would have it.

    Args:
        *args: As of ``DefaultSampler``, and ``**kwargs``.

    Example:
        >>> train_dataloader = dict(sampler=dict(type='UndividedSampler', shuffle=True))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank, self.world_size = 0, 1
        self.num_samples = self.total_size = len(self.dataset)


@DATA_SAMPLERS.register_module()
class UndividedInfiniteSampler(InfiniteSampler):
    """MMEngine's ``InfiniteSampler`` as one process would have it.

    Args:
        *args: As of ``InfiniteSampler``, and ``**kwargs``.

    Example:
        >>> train_dataloader = dict(sampler=dict(type='UndividedInfiniteSampler', shuffle=True))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Before the first of its indices is drawn.
        self.rank, self.world_size = 0, 1


# What stands for a sampler that would give each process a part.
UNDIVIDED = {DefaultSampler: UndividedSampler, InfiniteSampler: UndividedInfiniteSampler}
