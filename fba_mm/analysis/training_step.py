"""One training step of a config, outside of a runner, to measure it."""

import math
from types import SimpleNamespace
from typing import Any, Dict

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..config import config_scope, custom_hooks
from ..preflight.building import build_model
from .trained_proposals import trained_proposals

# What takes part in the step itself.
_HOOKS = ('FBAHook', 'SplitBatchHook')


class TrainingStep:
    """Builds a config's model and optimizer, and does one training step when called.

    Args:
        cfg: A complete training config, with or without local learning.
        device: Where to train.

    Example:
        >>> step = TrainingStep(load_config('fba_mm::demo/retinanet_r34_fba_digits.py'))
        >>> losses = step(synthetic_batch(step.model, (2, 3, 64, 64)))
    """

    def __init__(self, cfg: Config, device: str = 'cpu'):
        self._cfg = cfg
        with config_scope(cfg):
            self.model = self._build_model(cfg, device).train()
            self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
            hooks = {name: HOOKS.build(hook) for name, hook in custom_hooks(cfg) if name in _HOOKS}
        for hook in hooks.values():
            hook.attach(self.model, self.optim_wrapper)
        self.hooks = [hook for name, hook in hooks.items() if name == 'FBAHook']
        # Of a training without end: what is measured is its local phase.
        self._iteration = SimpleNamespace(seed=0, iter=0, max_iters=math.inf)

    def _build_model(self, cfg: Config, device: str) -> nn.Module:
        return build_model(cfg).to(device)

    def __call__(self, data: Any) -> Dict[str, Tensor]:
        """Forward, backward and the optimizer's step on one batch.

        Args:
            data: What the config's dataloader yields.

        Returns:
            The model's log variables.
        """
        for hook in self.hooks:
            hook.before_train_iter(self._iteration, 0)
        self._iteration.iter += 1
        with config_scope(self._cfg), trained_proposals():
            log = self.model.train_step(data, self.optim_wrapper)
        # MMEngine's log values share no graph, but local ones are kept by the hook until logged.
        for hook in self.hooks:
            hook.clear_log()
        return {name: torch.as_tensor(value) for name, value in log.items()}

    def loss_without_gradients(self, data: Any) -> Tensor:
        """Forward and loss on one batch, in training mode, with nothing kept for a backward pass.

        Args:
            data: What the config's dataloader yields.

        Returns:
            The model's summed loss.
        """
        with torch.no_grad(), self.optim_wrapper.optim_context(self.model), config_scope(self._cfg):
            data = self.model.data_preprocessor(data, True)
            losses = self.model(data['inputs'], data_samples=data['data_samples'], mode='loss')
            return self.model.parse_losses(losses)[0]
