"""``LocalOptimWrapper``: when gradients are computed and applied."""
from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence, Union

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import LocalLearningError


@OPTIM_WRAPPERS.register_module()
class LocalOptimWrapper(OptimWrapper):
    """An :class:`mmengine.optim.OptimWrapper` that also takes a module's loss during the forward.

    Gradients of a local loss are computed as soon as it exists. Clipping, gradient accumulation
    and per-parameter settings work as MMEngine's: ``paramwise_cfg`` with the key
    ``'backbone.auxiliary'`` sets the learning rate and weight decay of the auxiliary networks
    apart (η_a beside η_l in the FBA paper's equation 1).

    Args:
        optimizer: The optimizer.
        apply: ``'end'`` applies all gradients together after the iteration, as stock training
            does. ``'eager'`` applies a module's gradients right after its backward pass and frees
            them; parameters that modules share still wait for the end. The result is the same,
            but for gradient clipping, which then takes each module's norm instead of the whole
            network's.
        **kwargs: ``accumulative_counts`` and ``clip_grad`` of ``OptimWrapper``.

    Raises:
        LocalLearningError: ``apply`` is neither.

    Example:
        >>> optim_wrapper = dict(
        ...     type='LocalOptimWrapper', optimizer=dict(type='SGD', lr=0.01),
        ...     paramwise_cfg=dict(custom_keys={'backbone.auxiliary': dict(lr_mult=2.)}))
    """

    def __init__(self, optimizer: Optimizer, apply: str = 'end', **kwargs):
        super().__init__(optimizer, **kwargs)
        if apply not in ('end', 'eager'):
            raise LocalLearningError(
                f"optim_wrapper.apply={apply!r}: give 'end' or 'eager'")
        self.apply = apply

    def update_local(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Compute the gradients of a module's loss now, and apply them if that is due.

        Args:
            loss: The module's summed loss, a scalar.
            parameters: What this loss alone trains.
        """
        # The forward pass around this may run under autocast, a backward pass should not.
        with torch.autocast(loss.device.type, enabled=False):
            self._backward_now(self.scale_loss(loss))
        if self.apply == 'eager' and self.should_sync():
            with self._only(parameters):
                self._apply_gradients()
            for parameter in parameters:
                parameter.grad = None
        # Casts of weights that will not be needed again in this forward pass.
        torch.clear_autocast_cache()

    def _backward_now(self, loss: Tensor) -> None:
        # Unlike backward(), this is no iteration of its own for gradient accumulation.
        loss.backward()

    def _apply_gradients(self) -> None:
        OptimWrapper.step(self)

    @contextmanager
    def _only(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Hide all other gradients: an optimizer passes over parameters without one."""
        own = {id(p) for p in parameters}
        hidden = [(p, p.grad) for group in self.optimizer.param_groups for p in group['params']
                  if id(p) not in own and p.grad is not None]
        for parameter, _ in hidden:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, grad in hidden:
                parameter.grad = grad


class _ScaledStep:
    """One step of an optimizer under a gradient scaler.

    ``torch.amp.GradScaler`` allows one step per optimizer and update; for several it takes
    several optimizers. This is the same optimizer under another identity.
    """

    def __init__(self, optimizer: Optimizer):
        self.param_groups = optimizer.param_groups
        self.step = optimizer.step


@OPTIM_WRAPPERS.register_module()
class AmpLocalOptimWrapper(LocalOptimWrapper):
    """:class:`LocalOptimWrapper` under automatic mixed precision, on CPU and GPU.

    Takes the arguments of MMEngine's ``AmpOptimWrapper`` and writes the same checkpoints.

    Args:
        loss_scale: ``'dynamic'``, a fixed factor, or the arguments of ``torch.amp.GradScaler``.
            Only float16 is scaled: bfloat16 has the exponents of float32.
        dtype: ``'float16'`` or ``'bfloat16'``; unset, torch's default for the device (float16 on
            CUDA, bfloat16 on CPU).
        **kwargs: Arguments of :class:`LocalOptimWrapper`.

    Raises:
        LocalLearningError: Another ``dtype`` or kind of ``loss_scale``.

    Example:
        >>> optim_wrapper = dict(type='AmpLocalOptimWrapper', dtype='bfloat16',
        ...                      optimizer=dict(type='SGD', lr=0.01))
    """

    def __init__(self,
                 loss_scale: Union[str, float, dict] = 'dynamic',
                 dtype: Optional[Union[str, torch.dtype]] = None,
                 **kwargs):
        super().__init__(**kwargs)
        device = next((p.device.type for group in self.optimizer.param_groups
                       for p in group['params']), 'cpu')
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype not in (None, torch.float16, torch.bfloat16):
            raise LocalLearningError(
                f"optim_wrapper.dtype={dtype!r}: give 'float16' or 'bfloat16'")
        self.device_type = device
        self.cast_dtype = dtype or torch.get_autocast_dtype(device)
        self._fixed_scale = None
        if isinstance(loss_scale, (int, float)) and not isinstance(loss_scale, bool):
            self._fixed_scale = float(loss_scale)
            settings = dict(init_scale=self._fixed_scale)
        elif isinstance(loss_scale, dict):
            settings = loss_scale
        elif loss_scale == 'dynamic':
            settings = {}
        else:
            raise LocalLearningError(
                f"optim_wrapper.loss_scale={loss_scale!r}: give 'dynamic', a number, or a dict of "
                "GradScaler's arguments")
        self.loss_scaler = torch.amp.GradScaler(
            device, enabled=self.cast_dtype == torch.float16, **settings)
        # Kept until the scaler's update, which tells them apart by identity.
        self._scaled_steps: List[_ScaledStep] = []

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Forward pass under autocast, without gradient synchronization while accumulating."""
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward pass of the model's own loss, scaled."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def _backward_now(self, loss: Tensor) -> None:
        super()._backward_now(self.loss_scaler.scale(loss))

    def step(self, **kwargs) -> None:
        """Apply what gradients there are, and let the scaler judge the whole iteration."""
        self._apply_gradients(**kwargs)
        self.loss_scaler.update(self._fixed_scale)
        self._scaled_steps.clear()

    def _apply_gradients(self, **kwargs) -> None:
        if not any(p.grad is not None for g in self.optimizer.param_groups for p in g['params']):
            return
        scaled = _ScaledStep(self.optimizer)
        self._scaled_steps.append(scaled)
        self.loss_scaler.unscale_(scaled)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(scaled, **kwargs)

    def state_dict(self) -> dict:
        """The optimizer's state, and the scaler's under ``loss_scaler``."""
        return dict(super().state_dict(), loss_scaler=self.loss_scaler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the optimizer and, where the state has one, the scaler."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop('loss_scaler', None)
        if scaler and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)
