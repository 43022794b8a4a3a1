"""A training step in one of several processes, of a model in a wrapper for distributed training."""

from typing import Callable

from mmengine.config import Config
from torch import nn

from fba_mm.analysis.training_step import TrainingStep


class WrappedStep(TrainingStep):
    """A training step in one of several processes.

    Args:
        cfg: The config.
        wrap: Puts the model into its wrapper: the wrapper's class, or a function.
        device: Where to train.
    """

    def __init__(self, cfg: Config, wrap: Callable[[nn.Module], nn.Module], device: str = 'cpu'):
        self._wrap = wrap
        super().__init__(cfg, device)

    def _build_model(self, cfg: Config, device: str) -> nn.Module:
        return self._wrap(super()._build_model(cfg, device))
