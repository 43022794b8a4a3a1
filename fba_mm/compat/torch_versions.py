"""What differs between the supported versions of torch, the newest difference first.

``setup.py`` states the oldest supported version. Each entry begins with the version that it can go
with: from that one on, torch itself does what is done here.
"""

import warnings
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, BinaryIO, Callable, ContextManager, Dict, Iterator, Optional, Tuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import LocalLearningError

# torch 2.10: ``torch.load(weights_only=True)`` runs no code, and compares a tensor's size with what
# the file has of it.
REFUSES_CODE = torch.__version__ >= (2, 10)


def sizes_of_records(file: BinaryIO) -> Optional[Dict[str, int]]:
    """Torch 2.10: bytes of each record of an archive, which nobody compares with those asked for.

    Torch's own reader counts them: an archive can be made in which Python's finds other records.

    Args:
        file: What ``torch.save`` wrote, opened.

    Returns:
        The sizes by name; None where torch compares by itself.
    """
    if REFUSES_CODE:
        return None
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    return {name: len(reader.get_record(name)) for name in reader.get_all_records()}


# torch 2.6: fully_shard, and DTensor under its public name.
try:
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
except ImportError:
    fully_shard = distribute_tensor = init_device_mesh = None

    class DTensor:
        """No tensor is one."""

    class DeviceMesh:
        """There is none."""

    class Replicate:
        """There is none."""


def check_fully_shard() -> None:
    """Refuse a torch that has no ``fully_shard``.

    Raises:
        LocalLearningError: This torch is older than 2.6.
    """
    if fully_shard is None:
        raise LocalLearningError(
            'LocalShardedDataParallel divides parameters by fully_shard, which torch '
            f'{torch.__version__} does not have: install torch 2.6 or later, or set '
            "model_wrapper_cfg.type='LocalDataParallel'"
        )


def checkpointing_on_meta() -> ContextManager:
    """Torch 2.5: within this context, ``torch.utils.checkpoint`` runs on the meta device.

    Before, it looks for a module ``torch.meta`` that keeps the state of random numbers.
    """
    return mock.patch.object(torch, 'meta', SimpleNamespace(), create=True)


# torch 2.5: MMEngine imports this, and torch tells every user that a part of it is deprecated.
with warnings.catch_warnings(record=True):
    import torch.distributed.optim  # noqa: F401


def is_autocast_enabled(device_type: str) -> bool:
    """Torch 2.4: ``torch.is_autocast_enabled(device_type)``.

    Args:
        device_type: ``'cpu'``, ``'cuda'``, …
    """
    if _asks_by_device():
        return torch.is_autocast_enabled(device_type)
    return _autocast_functions(device_type)[0]()


def autocast_dtype(device_type: str) -> torch.dtype:
    """Torch 2.4: ``torch.get_autocast_dtype(device_type)``.

    Args:
        device_type: ``'cpu'``, ``'cuda'``, …
    """
    if _asks_by_device():
        return torch.get_autocast_dtype(device_type)
    return _autocast_functions(device_type)[1]()


def without_generator(kwargs: dict) -> dict:
    """Torch 2.4: arguments of an op on fake tensors, which no generator has values for.

    Args:
        kwargs: The op's. Before, fake tensors accept no generator there.
    """
    return dict(kwargs, generator=None) if kwargs.get('generator') is not None else kwargs


def _asks_by_device() -> bool:
    return hasattr(torch, 'get_autocast_dtype')


def _autocast_functions(device_type: str) -> tuple:
    if device_type == 'cpu':
        return torch.is_autocast_cpu_enabled, torch.get_autocast_cpu_dtype
    if device_type == 'cuda':
        return torch.is_autocast_enabled, torch.get_autocast_gpu_dtype
    # Accelerators of other makers bring a module of their own.
    module = getattr(torch, device_type)
    return module.is_autocast_enabled, module.get_autocast_dtype


# torch 2.3: one scaler for all devices.
if hasattr(torch.amp, 'GradScaler'):
    GradScaler = torch.amp.GradScaler
else:

    def GradScaler(device: str, **settings: Any) -> torch.cuda.amp.GradScaler:
        """``torch.amp.GradScaler`` for the devices that autocast to float16: CUDA alone."""
        return torch.cuda.amp.GradScaler(**settings)


def is_resizable(storage: torch.UntypedStorage) -> bool:
    """Torch 2.3: ``storage.resizable()``, whether torch itself has allocated the memory.

    Args:
        storage: The storage. Before torch 2.3, its memory is moved.
    """
    if hasattr(storage, 'resizable'):
        return storage.resizable()
    try:
        storage.resize_(storage.nbytes())
    except RuntimeError:
        return False
    return True


# torch 2.2: what a lost process makes the others raise.
DistError = getattr(dist, 'DistError', dist.DistBackendError)


def autocasts_to(device_type: str, dtype: torch.dtype) -> bool:
    """Torch 2.2: whether autocast computes in this type; to float16 on CPUs it didn't before.

    Args:
        device_type: ``'cpu'``, ``'cuda'``, …
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with torch.autocast(device_type, dtype=dtype):
                return is_autocast_enabled(device_type)
        except RuntimeError:
            return False


@lru_cache(maxsize=None)
def give_deform_conv_shapes() -> None:
    """Torch 2.2 (torchvision 0.17): deformable convolution of tensors without memory."""
    import torchvision  # noqa: F401, registers its operators

    for name, kernel in (
        ('deform_conv2d', _deform_conv),
        ('_deform_conv2d_backward', _deform_conv_backward),
    ):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f'torchvision::{name}', 'Meta'):
            _meta_kernels().impl(name, kernel)


@lru_cache(maxsize=None)
def _meta_kernels() -> torch.library.Library:
    return torch.library.Library('torchvision', 'IMPL', 'Meta')  # They go when this goes.


def _deform_conv(input: Tensor, weight: Tensor, offset: Tensor, *_: Any) -> Tensor:
    return input.new_empty((len(input), len(weight), *offset.shape[2:]))


def _deform_conv_backward(grad: Tensor, *inputs: Any) -> Tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:5])


# torch 2.2: formulas of operations that take tensors; before, they take shapes.
try:
    from torch.utils.flop_counter import flop_registry
except ImportError:
    from torch.utils.flop_counter import flop_mapping

    def _of_tensors(formula: Callable) -> Callable:

        def count(*args: Any, out_val: Any, **kwargs: Any) -> int:
            args, kwargs, out_shape = tree_map(
                lambda x: x.shape if isinstance(x, Tensor) else x, (args, kwargs, out_val)
            )
            return formula(*args, **kwargs, out_shape=out_shape)

        return count

    flop_registry = {op: _of_tensors(formula) for op, formula in flop_mapping.items()}


# torch 2.2: computing with values while a mode of fake tensors is active.
try:
    from torch._subclasses.fake_tensor import unset_fake_temporarily
except ImportError:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import (
        _get_current_dispatch_mode_stack,
        _pop_mode,
        _push_mode,
    )

    @contextmanager
    def unset_fake_temporarily() -> Iterator[None]:
        """Within this context, the modes that are active are those that make no fake tensors."""
        modes = _get_current_dispatch_mode_stack()
        others = [mode for mode in modes if not isinstance(mode, FakeTensorMode)]
        _replace_modes(modes, others)
        try:
            yield
        finally:
            _replace_modes(others, modes)

    def _replace_modes(old: list, new: list) -> None:
        for _ in old:
            _pop_mode()
        for mode in new:
            _push_mode(mode)
