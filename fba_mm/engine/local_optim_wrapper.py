"""``LocalOptimWrapper``: when gradients are computed and applied."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union, cast

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arguments import check_number
from ..compat.torch_versions import GradScaler, autocast_dtype, autocasts_to
from ..distributed import GradientReducer, ShardedReducer
from ..errors import LocalLearningError
from .loss_check import LossCheck

# Gradients that eager steps collect before the optimizer is called: few calls, little memory.
_EAGER_BYTES = 4 * 2**20

Reducer = Union[GradientReducer, ShardedReducer]


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
            does. ``'eager'`` applies gradients during the backward passes, as soon as some MiB of
            them are complete, and frees them; what modules share still waits for the last pass.
            The result is the same, but for gradient clipping, which needs all gradients of what
            it clips: eager steps then wait for the end of a module's backward pass and take the
            module's norm, not the whole network's. It takes an optimizer that treats each parameter
            by itself, as torch's own do and LAMB doesn't. Unset, ``'eager'`` for torch's
            optimizers without clipping, and ``'end'`` otherwise. In several processes, eager steps
            apply a module's gradients when the next module's loss is there: until then they are on
            their way between the processes.
        **kwargs: ``accumulative_counts`` and ``clip_grad`` of ``OptimWrapper``.

    Raises:
        LocalLearningError: ``apply`` is neither, or, in training, a layer gets its gradient in
            several parts, so that an eager step would come too early.

    Example:
        >>> optim_wrapper = dict(
        ...     type='LocalOptimWrapper', optimizer=dict(type='SGD', lr=0.01),
        ...     paramwise_cfg=dict(custom_keys={'backbone.auxiliary': dict(lr_mult=2.)}))
    """

    def __init__(self, optimizer: Optimizer, apply: Optional[str] = None, **kwargs: Any):
        super().__init__(optimizer, **kwargs)
        if apply not in (None, 'end', 'eager'):
            raise LocalLearningError(f"optim_wrapper.apply={apply!r}: give 'end' or 'eager'")
        # Of others it is not known, unless the user says 'eager'.
        self.by_parameter = apply == 'eager' or type(optimizer).__module__.startswith('torch.optim')
        self.apply = apply or (
            'eager' if self.by_parameter and not self.clip_grad_kwargs else 'end'
        )
        self._groups: Dict[nn.Parameter, int] = {}
        self._reducer: Optional[Reducer] = None
        self._loss_check: Optional[LossCheck] = None
        self._trains_modules = False

    @property
    def scales_losses(self) -> bool:
        """Whether losses are scaled, so that an overflow anywhere undoes the whole step."""
        return False

    def reduce_with(self, reducer: Reducer) -> None:
        """From now on, apply the means of gradients over several processes.

        Args:
            reducer: Takes the means.
        """
        self._reducer = reducer

    def check_with(self, loss_check: LossCheck) -> None:
        """From now on, look for losses that are no numbers.

        Args:
            loss_check: Looks at the model's own loss, and at those of modules not yet seen.
        """
        self._loss_check = loss_check

    def accumulate_local(self, loss: Tensor) -> None:
        """Compute the gradients of a part of a module's loss now, and add them up.

        Args:
            loss: A summand of what :meth:`update_local` or ``update_params`` will be given the
                rest of, a scalar.
        """
        self._trains_modules = True
        # The forward pass around this may run under autocast, a backward pass should not.
        with torch.autocast(loss.device.type, enabled=False):
            self._backward_now(self.scale_loss(loss))

    def update_local(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Compute the gradients of a module's loss now, and apply them if that is due.

        Args:
            loss: The module's summed loss, a scalar.
            parameters: What this loss alone trains.
        """
        reducer = self._reducing
        if reducer is not None:
            # Those of the module before were under way during this module's forward pass.
            self._apply_reduced(reducer)
            with reducer.reducing(parameters):
                self.accumulate_local(loss)
        else:
            with self._applying_eagerly(parameters):
                self.accumulate_local(loss)
            if self.apply == 'eager' and self._completes:
                self._apply_to(parameters)
        # Casts of weights that will not be needed again in this forward pass.
        torch.clear_autocast_cache()

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backward pass of the model's own loss, the last of an iteration.

        Args:
            loss: The scaled loss.
            **kwargs: Arguments of ``torch.Tensor.backward``.
        """
        if self._loss_check is not None and not self._loss_check.finishes(loss):
            self._inner_count += 1
            return
        parameters = [
            p for g in self.optimizer.param_groups for p in g['params'] if p.requires_grad
        ]
        reducer = self._reducing
        if reducer is None:
            with self._applying_eagerly(parameters):
                self._backward(loss, **kwargs)
            return
        self._apply_reduced(reducer)
        # Asked first, as the backward pass counts the iteration.
        in_parts = self._applies_in_backward
        with reducer.reducing(parameters):
            self._backward(loss, **kwargs)
        for complete in reducer.finish():
            if in_parts:
                self._apply_to(complete)

    def update_without_loss(self) -> None:
        """End an iteration whose last loss, the model's own, is another process's.

        With ``update_params`` in that process, gradients accumulate over as many iterations here.
        """
        if self._loss_check is not None:
            self._loss_check.finishes()
        self._inner_count += 1
        if self.should_update():
            self.step()
            self.zero_grad()

    @property
    def _completes(self) -> bool:
        """Whether gradients will be complete with this iteration, and may be applied."""
        return self.should_sync() and (self._reducer is None or self._reducer.enabled)

    @property
    def _reducing(self) -> Optional[Reducer]:
        """What takes gradients' means over processes in this iteration, if anything does."""
        reducer = self._reducer
        if reducer is not None and (self._completes or reducer.each_iteration):
            return reducer
        return None

    def _apply_reduced(self, reducer: Reducer) -> None:
        """With eager steps, wait for a module's reduced gradients, and apply them."""
        if self.apply != 'eager' or not self._completes:
            return
        whole: List[nn.Parameter] = []
        for complete in reducer.finish():
            if self._applies_in_backward:
                self._apply_to(complete)
            else:
                whole.extend(complete)
        self._apply_to(whole)

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        if loss.requires_grad or not self._trains_modules:
            super().backward(loss, **kwargs)
        else:  # The last module and the head are frozen, while others learn.
            self._inner_count += 1

    def _backward_now(self, loss: Tensor) -> None:
        # Unlike backward(), this is no iteration of its own for gradient accumulation.
        loss.backward()

    def _apply_gradients(self) -> None:
        OptimWrapper.step(self)

    @property
    def _applies_in_backward(self) -> bool:
        """Whether gradients may be applied before the backward pass has ended."""
        return self.apply == 'eager' and not self.clip_grad_kwargs and self._completes

    @contextmanager
    def _applying_eagerly(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Within this context, apply these parameters' gradients as backward completes them."""
        if not self._applies_in_backward:
            yield
            return
        complete: List[nn.Parameter] = []
        applied = set()
        nbytes = 0

        def on_gradient(parameter: nn.Parameter) -> None:
            nonlocal nbytes
            if id(parameter) in applied:
                raise LocalLearningError(
                    f'a parameter of shape {tuple(parameter.shape)} gets its gradient in several '
                    'parts, as with activation checkpointing of a layer that runs more than once: '
                    "set optim_wrapper.apply='end'"
                )
            applied.add(id(parameter))
            complete.append(parameter)
            nbytes += cast(Tensor, parameter.grad).nbytes
            if nbytes >= _EAGER_BYTES:
                self._apply_to(complete)
                complete.clear()
                nbytes = 0

        handles = [p.register_post_accumulate_grad_hook(on_gradient) for p in parameters]
        try:
            yield
            if complete:
                self._apply_to(complete)
        finally:
            for handle in handles:
                handle.remove()

    def _apply_to(self, parameters: Sequence[nn.Parameter]) -> None:
        """Apply the gradients of some parameters, as far as they have any, and free them."""
        chosen: Dict[int, List[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                chosen.setdefault(self._group_index(parameter), []).append(parameter)
        chosen.pop(-1, None)
        if chosen:
            # The optimizer is shown these groups alone: there may be one for each parameter.
            groups = self.optimizer.param_groups
            everything = {i: groups[i]['params'] for i in chosen}
            for i, some in chosen.items():
                groups[i]['params'] = some
            self.optimizer.param_groups = [groups[i] for i in chosen]
            try:
                self._apply_gradients()
            finally:
                self.optimizer.param_groups = groups
                for i, all_of_group in everything.items():
                    groups[i]['params'] = all_of_group
        for parameter in parameters:
            parameter.grad = None

    def _group_index(self, parameter: nn.Parameter) -> int:
        """Which of the optimizer's groups a parameter is in; -1 if in none."""
        if parameter not in self._groups:
            self._groups = {
                p: i for i, group in enumerate(self.optimizer.param_groups) for p in group['params']
            }
            self._groups.setdefault(parameter, -1)
        return self._groups[parameter]


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
        LocalLearningError: Another ``dtype`` or kind of ``loss_scale``, or a ``dtype`` that
            autocast doesn't know on this device.

    Example:
        >>> optim_wrapper = dict(type='AmpLocalOptimWrapper', dtype='bfloat16',
        ...                      optimizer=dict(type='SGD', lr=0.01))
    """

    def __init__(
        self,
        loss_scale: Union[str, float, dict] = 'dynamic',
        dtype: Optional[Union[str, torch.dtype]] = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        device = next(
            (p.device.type for group in self.optimizer.param_groups for p in group['params']), 'cpu'
        )
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype not in (None, torch.float16, torch.bfloat16):
            raise LocalLearningError(f"optim_wrapper.dtype={dtype!r}: give 'float16' or 'bfloat16'")
        self.device_type = device
        self.cast_dtype = dtype or autocast_dtype(device)
        if not autocasts_to(device, self.cast_dtype):
            raise LocalLearningError(
                f'autocast of torch {torch.__version__} does not compute in '
                f"{str(self.cast_dtype)[6:]} on {device}: set optim_wrapper.dtype='bfloat16'"
            )
        self._fixed_scale: Optional[float] = None
        if isinstance(loss_scale, (int, float)) and not isinstance(loss_scale, bool):
            self._fixed_scale = float(check_number('optim_wrapper.loss_scale', loss_scale, above=0))
            settings: Dict[str, Any] = dict(init_scale=self._fixed_scale)
        elif isinstance(loss_scale, dict):
            settings = loss_scale
        elif loss_scale == 'dynamic':
            settings = {}
        else:
            raise LocalLearningError(
                f"optim_wrapper.loss_scale={loss_scale!r}: give 'dynamic', a number, or a dict of "
                "GradScaler's arguments"
            )
        for name in ('init_scale', 'growth_factor', 'backoff_factor'):
            check_number(f'optim_wrapper.loss_scale.{name}', settings.get(name, 1), above=0)
        self.loss_scaler = GradScaler(device, enabled=self.cast_dtype == torch.float16, **settings)
        # Kept until the scaler's update, which tells them apart by identity.
        self._scaled_steps: List[_ScaledStep] = []

    @property
    def scales_losses(self) -> bool:
        """Whether losses are scaled, so that an overflow anywhere undoes the whole step."""
        return self.loss_scaler.is_enabled()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Forward pass under autocast, without gradient synchronization while accumulating."""
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        super()._backward(self.loss_scaler.scale(loss), **kwargs)

    @property
    def _applies_in_backward(self) -> bool:
        # Scaled gradients are looked at for overflow before any of a module's are applied.
        return super()._applies_in_backward and not self.loss_scaler.is_enabled()

    def _backward_now(self, loss: Tensor) -> None:
        super()._backward_now(self.loss_scaler.scale(loss))

    def step(self, **kwargs: Any) -> None:
        """Apply what gradients there are, and let the scaler judge the whole iteration."""
        self._apply_gradients(**kwargs)
        if self._scaled_steps:  # Otherwise no loss of this iteration was a number.
            self.loss_scaler.update(self._fixed_scale)
        self._scaled_steps.clear()

    def _apply_gradients(self, **kwargs: Any) -> None:
        if not any(p.grad is not None for g in self.optimizer.param_groups for p in g['params']):
            return
        scaled = _ScaledStep(self.optimizer)
        self._scaled_steps.append(scaled)
        # To the scaler, it is an optimizer.
        optimizer = cast(Optimizer, scaled)
        self.loss_scaler.unscale_(optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(optimizer, **kwargs)

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


def local_form(optim_wrapper: OptimWrapper, settings: Mapping) -> OptimWrapper:
    """What takes local losses in the place of MMEngine's ``AmpOptimWrapper``.

    ``--amp`` of MMDetection's and MMPretrain's own tools puts that in the place of any other.
    Parameter schedulers may keep the one that was there: they change the optimizer, which is the
    same.

    Args:
        optim_wrapper: The runner's; returned as it is if it is none of MMEngine's for mixed
            precision.
        settings: Its config; where there is none, it is returned as it is, too.

    Example:
        >>> runner.optim_wrapper = local_form(runner.optim_wrapper, runner.cfg.optim_wrapper)
    """
    if type(optim_wrapper) is not AmpOptimWrapper or not settings:
        return optim_wrapper
    names = ('loss_scale', 'dtype', 'accumulative_counts', 'clip_grad')
    kept = {name: settings[name] for name in names if name in settings}
    local = AmpLocalOptimWrapper(optimizer=optim_wrapper.optimizer, **kept)
    local.base_param_settings = optim_wrapper.base_param_settings
    # Schedulers would warn that it never steps.
    optim_wrapper._global_step = 0
    return local
