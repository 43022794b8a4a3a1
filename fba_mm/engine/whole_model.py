"""For validation and checkpoints: the whole model, where processes have parts of it."""

from contextlib import contextmanager
from typing import Iterator

from mmengine.hooks import EMAHook

from .local_sharded_data_parallel import LocalShardedDataParallel
from .module_parallel import LocalModuleParallel


def gather_weights(runner) -> None:
    """Where processes have parts of the model, give all of them all weights; else, do nothing.

    Args:
        runner: MMEngine's runner.
    """
    if isinstance(runner.model, LocalShardedDataParallel):
        runner.model.gather_weights()
    elif isinstance(runner.model, LocalModuleParallel):
        runner.model.gather_weights(
            hook.ema_model.module
            for hook in getattr(runner, 'hooks', ())
            if isinstance(hook, EMAHook)
        )


@contextmanager
def whole_model(runner) -> Iterator[None]:
    """Within this context, process 0 has all weights and the optimizer's whole state.

    Args:
        runner: MMEngine's runner.
    """
    if isinstance(runner.model, LocalShardedDataParallel):
        with runner.model.whole_state_dict(), runner.model.whole_optimizer(runner.optim_wrapper):
            yield
    elif isinstance(runner.model, LocalModuleParallel):
        gather_weights(runner)
        with runner.model.whole_optimizer(runner.optim_wrapper):
            yield
    else:
        yield


@contextmanager
def whole_weights(runner) -> Iterator[None]:
    """Within this context, which validation comes before, process 0 has all weights.

    Args:
        runner: MMEngine's runner.
    """
    if isinstance(runner.model, LocalShardedDataParallel):
        with runner.model.whole_state_dict():
            yield
    else:
        yield
