"""What to try next when training runs out of memory."""

from contextlib import contextmanager
from typing import Iterator, Optional

import torch
from mmengine.config import Config

from ..analysis.memory_fit import in_mib, predict_memory
from ..analysis.step_configs import trains_locally
from ..analysis.synthetic_batch import batch_shape
from ..errors import LocalLearningError
from ..localize import stock_form
from .plan import Planned, Search
from .ways import Series, ways_to_train

# What is to be gained at least: allocators round, and images differ in size.
_LESS = 0.9
_SMALLER = 'take smaller images, a smaller train_dataloader.batch_size or --amp'


@contextmanager
def next_way_when_out_of_memory(cfg: Config) -> Iterator[None]:
    """Let training that runs out of memory end with the next way to try, in one line.

    Args:
        cfg: The config that is trained.

    Raises:
        LocalLearningError: Memory ran out.

    Example:
        >>> with next_way_when_out_of_memory(cfg):
        ...     runner.train()
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = ' '.join(str(error).split())[:120]
    # Not before the traceback is gone, which held the step's tensors.
    raise LocalLearningError(f'out of memory ({text}): {advice(cfg)}')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory for a tensor, on a GPU or on the CPU.

    Args:
        error: What was raised.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and 'DefaultCPUAllocator' in str(error)
    )


def advice(cfg: Config) -> str:
    """The way to train that takes clearly less than a config does, exact ones first, as a sentence.

    Args:
        cfg: What was trained.
    """
    try:
        now = predict_memory(cfg, batch_shape(cfg)).total
        found = _next_way(cfg, now * _LESS)
    except LocalLearningError:
        return _SMALLER
    if found is None:
        return f'no other way to train takes clearly less than {in_mib(now)}: {_SMALLER}'
    how = found.way.how or f'--memory-budget {-(-found.memory.total // 2**20)}MiB'
    return (
        f'try "{found.way.name}" next, with {how} of tools/train.py on the stock '
        f'config: by its tensors, a step takes {in_mib(found.memory.total)} so and '
        f'{in_mib(now)} as it was'
    )


def _next_way(cfg: Config, most: float) -> Optional[Planned]:
    if trains_locally(cfg):
        cfg = stock_form(cfg)
    search = Search(cfg, batch_shape(cfg), int(most))
    for way in ways_to_train(cfg)[1:]:
        found = search.least_that_fits(way) if isinstance(way, Series) else search.attempt(way)
        if found is not None and found.memory.total <= most:
            return found
    return None
