"""``Placement``: which process has which part of a model while it trains.

One protocol for its four kinds:

- :class:`Whole`: one process, no model wrapper.
- :class:`DataParallel`, of ``LocalDataParallel``: a part of the images in each process, and all
  parameters.
- :class:`Sharded`, of ``LocalShardedDataParallel``: a part of the images in each process, and a
  piece of each parameter, gathered a module at a time.
- :class:`ModuleParallel`, of ``LocalModuleParallel``: all images and parameters in each process,
  which trains some of the modules.

The hook, the checkpoints and the checks ask :func:`placement_of`, and never what wraps the model.
"""

from contextlib import contextmanager
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, Optional

from mmengine.dist import get_rank, is_distributed
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import LocalLearningError
from ..local import LocalStep
from ..local.stage_state import StageState
from .processes import check_agreement

# Opens the step of one iteration, ``open_step(inputs, data_samples)``, and closes it.
OpenStep = Callable[[Any, Any], ContextManager[LocalStep]]


class Placement:
    """What a training asks of the processes that share in it; by default, that there is one.

    In the order in which it is called: :meth:`check`, :meth:`attach` and :meth:`begin` before
    training; in each step :meth:`iteration`, and in it :meth:`enter` for each module of
    :attr:`modules_here`; for validation and checkpoints :meth:`gather_weights`,
    :meth:`whole_model` and :meth:`whole_weights`.

    Args:
        model: The model itself, without what wraps it.

    Attributes:
        divides_images: Whether processes train on images of their own, or all on the same.
        is_whole: Whether every process has all weights at any time.
        modules_here: The modules that run in this process, from 0; None for all of them.
        received: What the process with the modules before these has made of the batch.
    """

    divides_images = True
    is_whole = True
    modules_here: Optional[range] = None
    received: Optional[StageState] = None

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def seed_rank(self) -> int:
        """What random draws of processes differ by: those for the same images are the same."""
        return get_rank() if self.divides_images else 0

    def describe(self) -> str:
        """A line for the log that says what is where, or nothing."""
        return ''

    def check(self, runner: Runner, scope: str) -> None:
        """Refuse, before training, what would not be the same as in one process.

        Args:
            runner: MMEngine's runner, with the model and a :class:`LocalOptimWrapper`.
            scope: Of the feature bank.

        Raises:
            LocalLearningError: Says what is wrong and how to fix it.
        """

    def attach(self, optim_wrapper: OptimWrapper, open_step: Optional[OpenStep] = None) -> None:
        """Get ready to train, with weights that are initialized or loaded.

        Args:
            optim_wrapper: Has the model's parameters; takes over what reduces their gradients.
            open_step: For a process that runs modules without the model around them.
        """

    def begin(self, runner: Runner) -> None:
        """Before the first iteration: free what is other processes' part.

        Args:
            runner: MMEngine's runner, whose training is about to begin.
        """

    @contextmanager
    def iteration(self, optim_wrapper: OptimWrapper) -> Iterator[None]:
        """Around one training step of the model.

        Args:
            optim_wrapper: See :meth:`attach`.
        """
        yield

    def enter(self, index: int) -> None:
        """Have a module's parameters, before it runs.

        Args:
            index: 0 to K - 1; after the last one come the model's own neck and head.
        """

    def gather_weights(self, averages: Iterable[nn.Module] = ()) -> None:
        """Give all processes all weights, until the next training step. All have to come here.

        Args:
            averages: From :func:`weight_averages`.
        """

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within this context, after :meth:`gather_weights`, process 0 can save the model.

        All processes have to come here.
        """
        yield

    @contextmanager
    def whole_model(
        self, optim_wrapper: OptimWrapper, averages: Iterable[nn.Module] = ()
    ) -> Iterator[None]:
        """Within this context, process 0 can save the model and the optimizer's whole state.

        All processes have to come here.

        Args:
            optim_wrapper: Of this process.
            averages: From :func:`weight_averages`.
        """
        yield


class Whole(Placement):
    """The model as it is in one process, or in a wrapper that knows no local losses.

    Args:
        model: The model, or such a wrapper around it.
    """

    def __init__(self, model: nn.Module):
        self._wrapper = type(model) if is_model_wrapper(model) else None
        super().__init__(model if self._wrapper is None else model.get_submodule('module'))
        # Other wrappers may have pieces in each process.
        self.is_whole = self._wrapper in (None, MMDistributedDataParallel)

    def check(self, runner: Runner, scope: str) -> None:
        """Refuse a wrapper that would leave each process with the gradients of its own images."""
        if self._wrapper is not None:
            raise LocalLearningError(
                f'{self._wrapper.__name__} would not reduce the gradients of local losses '
                "between processes: set model_wrapper_cfg=dict(type='LocalDataParallel') in the "
                'config, or inherit configs/_base_/fba.py'
            )


class PlacedModel(nn.Module):
    """What the model wrappers of several processes have in common: a model, and its placement.

    Args:
        module: The model, the same in all processes.

    Raises:
        LocalLearningError: There is one process alone, or the processes have different models.
    """

    placement: Placement
    module: BaseModel

    def __init__(self, module: BaseModel):
        super().__init__()
        if not is_distributed():
            raise LocalLearningError(
                f'{type(self).__name__} needs several processes: start them with '
                'tools/dist_train.sh, or leave model_wrapper_cfg out'
            )
        check_agreement(
            'model',
            {
                name: f'{tuple(p.shape)} {p.dtype}{"" if p.requires_grad else ", frozen"}'
                for name, p in module.named_parameters()
            },
        )
        self.module = module

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> Dict[str, Tensor]:
        """One training iteration of the model, as its own ``train_step`` does it.

        Args:
            data: This process's part of the batch, as the dataloader gives it.
            optim_wrapper: A :class:`LocalOptimWrapper`.

        Returns:
            The model's log variables, of this process's part.
        """
        with self.placement.iteration(optim_wrapper):
            return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> list:
        """Predictions of the model in validation.

        Args:
            data: As the dataloader gives it.
        """
        return self.module.val_step(data)

    def test_step(self, data: Any) -> list:
        """Predictions of the model in testing.

        Args:
            data: As the dataloader gives it.
        """
        return self.module.test_step(data)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward pass."""
        return self.module(*args, **kwargs)


def placement_of(model: nn.Module) -> Placement:
    """Where a model's modules are.

    Args:
        model: A model, or what wraps it for several processes.
    """
    return model.placement if isinstance(model, PlacedModel) else Whole(model)


def weight_averages(runner: Runner) -> Iterator[nn.Module]:
    """Averages of the weights that hooks keep, models of the same kind.

    Args:
        runner: MMEngine's runner.
    """
    for hook in getattr(runner, 'hooks', ()):
        if isinstance(hook, EMAHook):
            yield hook.ema_model.module
