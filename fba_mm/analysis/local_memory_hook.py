"""``LocalMemoryHook``: what a step and each of its modules take, in the training's own log."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..arguments import check_count
from ..distributed import placement_of
from .memory import StorageTracker
from .step_phases import marked_phases, module_peaks

MIB = 2**20


@HOOKS.register_module()
class LocalMemoryHook(Hook):
    """Logs the memory of a training step and of each local module, as ``local_1.memory``, in MiB.

    ``step_memory`` is the peak of the live tensors that the step makes, above parameters, buffers
    and optimizer state; ``local_1.memory`` that of module 1, its auxiliary network and its backward
    pass included. The last module's goes on over neck, head and the model's own loss. It works on
    the CPU, and without local learning, where ``step_memory`` alone is logged.

    One step in ``interval`` is measured, op by op, which makes it slower and changes nothing that
    it computes; the value stands in the log until the next. The allocator isn't asked: MMEngine's
    own ``memory`` goes on as it is.

    Args:
        interval: Iterations from one measured step to the next. The first one measured is the
            training's second, as the first also makes the optimizer's state.

    Raises:
        LocalLearningError: ``interval`` is no positive number.

    Example:
        >>> custom_hooks = [dict(type='FBAHook'), dict(type='fba_mm.LocalMemoryHook')]
    """

    def __init__(self, interval: int = 100):
        check_count('interval', interval, what='a number of iterations')
        self.interval = interval
        self._first = 0

    def before_train(self, runner: Runner) -> None:
        """Measure the second iteration from here, whether or not the training is resumed."""
        self._first = runner.iter + 1

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the coming step measured, if it is its turn."""
        if runner.iter < self._first or (runner.iter - self._first) % self.interval:
            return
        train_step = runner.model.train_step

        def measured(*args: Any, **kwargs: Any) -> Any:
            del runner.model.train_step  # uncovers the class's
            tracker = StorageTracker()
            model = placement_of(runner.model).model
            with marked_phases(model, runner.optim_wrapper), tracker:
                log = train_step(*args, **kwargs)
            scalars = dict(step_memory=tracker.peak)
            for number, peak in enumerate(module_peaks(tracker.phases), 1):
                scalars[f'local_{number}.memory'] = peak
            for name, nbytes in scalars.items():
                runner.message_hub.update_scalar(f'train/{name}', nbytes / MIB)
            return log

        runner.model.train_step = measured
