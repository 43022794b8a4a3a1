"""How much memory the tensors of a training step take, moment by moment.

On the CPU nothing in torch keeps that account, so :class:`StorageTracker` does: it watches every op
go by and follows every storage that an op makes until the storage dies. On CUDA the allocator keeps
the account and is asked. :func:`measure_step` hides the difference.

What torch has already, and why it isn't enough here:

- ``torch.utils.module_tracker.ModuleTracker`` says which module is running, not how much it holds.
- ``torch.distributed._tools.mem_tracker.MemTracker`` follows storages in the same way, but it is
  private, missing from older torch and from builds without ``torch.distributed``, hooks every
  module, patches ``UntypedStorage.resize_`` and keeps snapshots per module and category but no
  timeline. Its peak includes the copies described at ``_IN_PLACE_WITHOUT_A_MODE`` below.
- ``torch.profiler.profile(profile_memory=True)`` sees every allocation, those inside an op as well,
  but answers only after the run. It is the independent witness in the tests.
"""

import contextlib
import gc
import sys
import time
import weakref
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Set, Tuple, Union

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..compat.torch_versions import is_resizable
from ..errors import LocalLearningError

aten = torch.ops.aten

# What simulated tensors are asked all the time; it makes nothing.
_DEVICE = torch.ops.prim.device.default

# While any dispatch mode is on the stack, autograd takes every tensor for a subclass that it must
# not write to. Where two gradients meet and in the backward of gather, max, top-k and indexing it
# then adds `a + b` into new memory instead of `a.add_(b)`. Such an `a` is counted as replaced by
# the result if it dies right after the op, so that the peak is that of a step without the tracker.
_IN_PLACE_WITHOUT_A_MODE = frozenset(
    [
        aten.add.Tensor,
        aten.scatter.src,
        aten.scatter.value,
        aten.scatter_add.default,
        aten.index_put.default,
    ]
)

# The frames that torch puts around a mode's method.
_WRAPPER_FILES = ('/torch/_compile.py', '/torch/_dynamo/eval_frame.py')
# Where Python enters the autograd engine, which is C++.
_ENGINE_FILES = ('/torch/autograd/__init__.py', '/torch/autograd/graph.py')


class _StorageRef(weakref.ref):
    """A weak reference to a storage that knows how many bytes were counted for it.

    ``role`` is what the storage turned out to be, where a subclass of the tracker asks for that.
    ``replaces`` refers to what an op without the tracker would have written to instead.
    """

    __slots__ = ('key', 'nbytes', 'role', 'replaces')

    def expired(self) -> bool:
        return self() is None


class _PolledStorageRef(StorageWeakRef):
    """The same for a torch that can't announce a storage's death: it has to be asked."""

    __slots__ = ('key', 'nbytes', 'role', 'replaces')

    def __init__(self, storage: torch.UntypedStorage, on_death: Callable) -> None:
        super().__init__(storage)


def _deaths_are_announced() -> bool:
    """Whether the Python object of a storage lives as long as the storage (torch >= 2.1)."""
    tensor = torch.empty(1)
    return weakref.ref(tensor.untyped_storage())() is not None


def storages_of(tensor: Tensor) -> List[torch.UntypedStorage]:
    """The storages that a tensor stands on: one, or those of its parts."""
    if tensor.layout == torch.strided:
        if not hasattr(tensor, '__tensor_flatten__'):
            return [tensor.untyped_storage()]
        # a subclass that wraps other tensors
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        # A DTensor's are its piece and its device mesh.
        return [s for part in parts if isinstance(part, Tensor) for s in storages_of(part)]
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        raise LocalLearningError(
            f'a tensor of layout {tensor.layout} has no storage to count: '
            'measure the step without that layout'
        )
    return [part.untyped_storage() for part in parts]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an op's arguments or results, in whatever containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def _normalized(path: str) -> str:
    return path.replace('\\', '/')


def _called_by_the_engine() -> bool:
    """Whether the op under way comes from autograd's C++ code and not from Python code."""
    frame = sys._getframe()
    this_file = frame.f_code.co_filename
    while frame is not None:
        file = frame.f_code.co_filename
        if file != this_file and not _normalized(file).endswith(_WRAPPER_FILES):
            return _normalized(file).endswith(_ENGINE_FILES)
        frame = frame.f_back
    return True  # a thread of the engine's own, with no Python below the mode


def _watched(item: Any) -> Iterator[Tensor]:
    """The tensors of what a user wants to have watched."""
    if isinstance(item, nn.Module):
        for tensor in (*item.parameters(), *item.buffers()):
            yield tensor
            if tensor.grad is not None:
                yield tensor.grad
    elif isinstance(item, torch.optim.Optimizer):
        yield from tensors_in(dict(item.state))
    elif isinstance(item, Tensor):
        yield item
    elif isinstance(item, (dict, list, tuple)):
        for part in item.values() if isinstance(item, dict) else item:
            yield from _watched(part)
    else:
        raise LocalLearningError(
            f"can't watch a {type(item).__name__}: give tensors, modules, "
            'optimizers, or lists, tuples and dicts of them'
        )


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of the tensor storages that are alive, op by op.

    A storage counts from the op that made it until it dies, once however many views it has, whoever
    holds it: a variable, autograd, autocast's cache. Nothing is kept alive by being counted. What
    was there before (parameters, buffers, optimizer state, the input batch, last step's gradients)
    doesn't count unless given to :meth:`watch`. Tensors on all devices count alike.

    Not seen are what an op allocates and frees before it returns (workspaces), memory that isn't a
    tensor's, tensors made without an op (such as the random state that checkpointing keeps, 5 KiB),
    ops in another Python thread, what ``torch.compile`` plans inside a compiled graph, and
    ``untyped_storage().resize_`` called by hand until an op next returns that storage. Counted too
    high is the backward of ``prod``, ``cumprod`` and of binary cross entropy with ``pos_weight``:
    torch takes a more costly way through them while a mode is active.

    Trackers nest, each with its own account. A tracker may be entered again and goes on counting.

    Attributes:
        current (int): Bytes alive now.
        peak (int): The most bytes alive at once, since the start or the last :meth:`reset_peak`.
        timeline (list[tuple[float, int]]): (seconds since the tracker was entered, bytes alive),
            one sample after each op that found the number changed.
        marks (list[tuple[str, float]]): (name, seconds) of each :meth:`mark`.
        phases (list[tuple[str, int]]): (name, the most bytes alive at once from this :meth:`mark`
            until the next).

    Example:
        >>> x = torch.ones(256, requires_grad=True)
        >>> with StorageTracker() as tracker:
        ...     y = (x * 2).exp().sum()
        >>> tracker.peak, tracker.current  # x * 2 is gone, exp keeps its result, the sum is 4 bytes
        (2048, 1028)
    """

    def __init__(self) -> None:
        super().__init__()
        self._ref_type = _StorageRef if _deaths_are_announced() else _PolledStorageRef
        self._live: Dict[int, Union[_StorageRef, _PolledStorageRef]] = {}
        # A storage's death only files its reference here: that is safe at any moment, in any thread
        # and in the middle of a garbage collection. The sums are done by the next op.
        self._dead: Deque[_StorageRef] = deque()
        self._bytes = 0
        self._peak = 0
        # (reference to what may replace another, bytes and composition with both alive)
        self._replaced: Optional[Tuple[Union[_StorageRef, _PolledStorageRef], int, Any]] = None
        self._at_peak: Any = None
        self._start: Optional[float] = None
        self._sample_seconds = array('d')
        self._sample_bytes = array('q')
        self._marks: List[Tuple[str, float]] = []
        self._phase_peaks: List[int] = []

    @property
    def current(self) -> int:
        """Bytes that are alive now."""
        self._settle()
        return self._bytes

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        self._settle()
        return self._peak

    @property
    def timeline(self) -> List[Tuple[float, int]]:
        """Seconds since the start and bytes alive, at each change."""
        self._settle()
        return list(zip(self._sample_seconds, self._sample_bytes))

    @property
    def marks(self) -> List[Tuple[str, float]]:
        """Names and seconds of what :meth:`mark` was told."""
        return list(self._marks)

    @property
    def phases(self) -> List[Tuple[str, int]]:
        """Each mark's name, with the peak from there to the next."""
        self._settle()
        return [(name, peak) for (name, _), peak in zip(self._marks, self._phase_peaks)]

    def watch(self, *objects: Any) -> int:
        """Count what was there before as well, from now until it dies.

        Args:
            *objects: Tensors, modules (parameters, buffers and their gradients), optimizers (their
                state), and lists, tuples and dicts of these.

        Returns:
            int: The bytes that this added.

        Raises:
            LocalLearningError: If an object is none of these.
        """
        self._bury()
        before = self._bytes
        self._follow_all(_watched(objects))
        self._rise(self._bytes)
        return self._bytes - before

    def mark(self, name: str) -> None:
        """Name this moment, for instance the start of a phase."""
        self._settle()
        self._marks.append((name, self._seconds()))
        self._phase_peaks.append(self._bytes)

    def reset_peak(self) -> None:
        """Start looking for the peak afresh from what is alive now."""
        self._settle()
        self._peak = self._bytes
        self._at_peak = self._composition()

    def __enter__(self) -> 'StorageTracker':
        if self._start is None:
            self._start = time.perf_counter()
        self._settle()
        _under_way.append(self)
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        _under_way.remove(self)
        self._settle()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _DEVICE:
            return func(*args)
        kwargs = kwargs or {}
        # `out=` tensors and resize_ are the ways in which an op gives new memory to an old storage.
        resizable = args[:1] if func is aten.resize_.default else kwargs.values()
        nbytes_before = (
            {
                storage._cdata: storage.nbytes()
                for tensor in resizable
                if isinstance(tensor, Tensor)
                for storage in storages_of(tensor)
            }
            if resizable
            else {}
        )
        result = func(*args, **kwargs)
        self._account(func, args, kwargs, result, nbytes_before)
        return result

    def _account(self, func, args, kwargs, result, nbytes_before: Dict[int, int]) -> None:
        self._bury()
        before = self._bytes
        inputs: Optional[Set[int]] = None
        for tensor in tensors_in(result):
            for storage in storages_of(tensor):
                key = storage._cdata
                if key in self._live:
                    made_here = True
                elif func is aten.lift_fresh.default:
                    # torch.tensor() allocates unseen and shows what it made as this op's input.
                    # torch.from_numpy() does so too, but that memory is numpy's, not to be resized.
                    made_here = is_resizable(storage)
                else:
                    if inputs is None:
                        inputs = {
                            storage._cdata
                            for value in tensors_in((args, kwargs))
                            for storage in storages_of(value)
                        }
                    made_here = (
                        key not in inputs
                        or nbytes_before.get(key, storage.nbytes()) != storage.nbytes()
                    )
                if made_here:
                    self._follow(storage)
        if self._bytes > before and func in _IN_PLACE_WITHOUT_A_MODE:
            replaced = self._would_be_written_to(args[0], self._bytes - before)
            if replaced is not None:
                result_ref = self._live[result.untyped_storage()._cdata]
                result_ref.replaces = replaced
                self._replaced = (result_ref, self._bytes, self._composition())
                self._rise(self._bytes - replaced.nbytes)
                return
        self._rise(self._bytes)

    def _would_be_written_to(self, tensor: Tensor, result_nbytes: int):
        """The reference to what the op under way would write its result to, were no mode active."""
        if torch.is_grad_enabled() or tensor.layout != torch.strided:
            return None
        ref = self._live.get(tensor.untyped_storage()._cdata)
        if ref is None or ref.nbytes != result_nbytes or not _called_by_the_engine():
            return None
        return ref

    def _follow_all(self, tensors) -> None:
        for tensor in tensors:
            for storage in storages_of(tensor):
                self._follow(storage)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, or its new size if it is counted already."""
        nbytes = storage.nbytes()
        known = self._live.get(storage._cdata)
        if known is None:
            if nbytes == 0:  # nothing to count; should it grow, resize_ or `out=` shows it
                return
        elif known.nbytes == nbytes:
            return
        # Another size, another reference: those that make up the peak keep theirs.
        ref = self._ref_type(storage, self._dead.append)
        ref.key = storage._cdata
        ref.nbytes = nbytes
        ref.role = None if known is None else known.role
        ref.replaces = None
        self._live[ref.key] = ref
        self._bytes += nbytes - (0 if known is None else known.nbytes)

    def _bury(self) -> None:
        """Take off the account what has died, and decide on the op before."""
        if self._ref_type is _PolledStorageRef:
            self._dead.extend(ref for ref in self._live.values() if ref.expired())
        while self._dead:
            ref = self._dead.popleft()
            if self._live.get(ref.key) is ref:
                del self._live[ref.key]
                self._bytes -= ref.nbytes
        if self._replaced is not None:
            result, together, composition = self._replaced
            self._replaced = None
            # Somebody needs both: they were never one.
            if self._live.get(result.replaces.key) is result.replaces:
                result.replaces = None
                self._rise(together, composition)

    def _settle(self) -> None:
        self._bury()
        self._sample(self._bytes)

    def _rise(self, nbytes: int, composition: Any = None) -> None:
        if nbytes > self._peak:
            self._peak = nbytes
            self._at_peak = self._composition() if composition is None else composition
        if self._phase_peaks and nbytes > self._phase_peaks[-1]:
            self._phase_peaks[-1] = nbytes
        self._sample(nbytes)

    def _composition(self) -> Any:
        """What is alive now, for a subclass that wants to know it of the peak: see PeakSplit."""

    def _sample(self, nbytes: int) -> None:
        if self._start is None:  # what is watched before the start is where the line begins
            return
        if not self._sample_bytes or self._sample_bytes[-1] != nbytes:
            self._sample_seconds.append(self._seconds())
            self._sample_bytes.append(nbytes)

    def _seconds(self) -> float:
        return 0.0 if self._start is None else time.perf_counter() - self._start


class _AllocatorSampler:
    """Asks the device's allocator at the borders of all modules, forward and backward.

    Hooks and not a dispatch mode, because a mode changes what autograd allocates (see
    ``_IN_PLACE_WITHOUT_A_MODE``), and an allocator's peak can't be corrected afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self.peak = 0
        self.timeline: List[Tuple[float, int]] = []
        self.marks: List[Tuple[str, float]] = []
        self._phase_peaks: List[int] = []

    @property
    def phases(self) -> List[Tuple[str, int]]:
        """Each mark's name, with the peak from there to the next."""
        return [(name, peak) for (name, _), peak in zip(self.marks, self._phase_peaks)]

    def sample(self, *_: Any) -> None:
        allocated = torch.cuda.memory_allocated(self._device)
        self.timeline.append((time.perf_counter() - self._start, allocated))

    def mark(self, name: str) -> None:
        self._end_phase()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.marks.append((name, time.perf_counter() - self._start))
        self._phase_peaks.append(0)

    def _end_phase(self) -> None:
        peak = torch.cuda.max_memory_allocated(self._device)
        self.peak = max(self.peak, peak)
        if self._phase_peaks:
            self._phase_peaks[-1] = peak

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.sample()
        for tensor in tensors_in(output):
            if tensor.requires_grad and not tensor.is_leaf:
                # It comes when the gradient is complete, before the module's own backward runs.
                tensor.register_hook(self._before_backward)

    def _before_backward(self, grad: Tensor) -> None:
        if self in _under_way:  # the graph, and this hook with it, may outlive the step
            self.sample()

    def __enter__(self) -> '_AllocatorSampler':
        with contextlib.ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self.sample).remove)
            stack.callback(register_module_forward_hook(self._after_forward).remove)
            self._hooks = stack.pop_all()
        _under_way.append(self)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._start = time.perf_counter()
        self.sample()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.sample()
        self._end_phase()
        _under_way.remove(self)
        self._hooks.close()


# What mark() writes to: all trackers and samplers entered and not yet left.
_under_way: List[Union[StorageTracker, _AllocatorSampler]] = []


def mark(name: str) -> None:
    """Name this moment in every measurement that is under way; without one, do nothing.

    So a training step can say where it is without knowing whether it is being measured.

    Args:
        name (str): What begins here, such as ``'backward'``.
    """
    for measurement in _under_way:
        measurement.mark(name)


@dataclass
class StepMemory:
    """What :func:`measure_step` found.

    Attributes:
        peak_bytes (int): The most bytes allocated at once during the step, above ``baseline``.
        baseline (int): The bytes allocated before the step: all of them on CUDA, those watched on
            the CPU.
        timeline (list[tuple[float, int]]): (seconds since the start, bytes above ``baseline``). Its
            highest point is ``peak_bytes`` on the CPU and may lie below it on CUDA.
        marks (list[tuple[str, float]]): (name, seconds since the start) of each :func:`mark`.
        seconds (float): How long the step took, the measurement's own time included.
        phases (list[tuple[str, int]]): (name, the most bytes above ``baseline`` from this
            :func:`mark` until the next), on both kinds of device the true peak.
    """

    peak_bytes: int
    baseline: int
    timeline: List[Tuple[float, int]]
    marks: List[Tuple[str, float]]
    seconds: float
    phases: List[Tuple[str, int]] = field(default_factory=list)


def measure_step(
    step: Callable[[], Any],
    device: Union[str, torch.device] = 'cpu',
    watch: Any = (),
    tracker: Optional[StorageTracker] = None,
) -> StepMemory:
    """Run one training step and measure the memory that it takes.

    Run the step once before: the first one also makes what stays, such as the optimizer's state.

    On the CPU the storages of tensors are counted exactly, without what ops use internally. On CUDA
    the peak is the allocator's, in its blocks and with the ops' workspaces, so the two aren't to be
    compared in bytes; the timeline is read at the borders of modules.

    Args:
        step (Callable[[], Any]): Does one step: forward, backward, optimizer. Its result is
            dropped.
        device (str | torch.device): The device whose memory counts, a CPU or a CUDA one.
        watch (Any): What :meth:`StorageTracker.watch` shall count from the start on the CPU, so
            that gradients freed by the step, say, lower the line. On CUDA all counts anyway.
        tracker (StorageTracker, optional): A new one of the caller's own kind, to count with on the
            CPU. On CUDA it would change what is measured and isn't used.

    Returns:
        StepMemory: Peak, baseline, timeline, marks and time.

    Raises:
        LocalLearningError: If the device is of another kind, or is CUDA where there is none.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> x = torch.ones(4, 8)
        >>> def step():
        ...     loss = model(x).sum()
        ...     mark('backward')
        ...     loss.backward()
        ...     model.zero_grad()
        >>> measure_step(step).peak_bytes > 0
        True
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise LocalLearningError(f"device={device!r} is no device: give 'cpu' or 'cuda'") from error
    # Garbage of earlier steps that happened to be collected during this one would blur the line.
    gc.collect()
    if device.type == 'cpu':
        return _measure_storages(step, watch, tracker or StorageTracker())
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise LocalLearningError(
                f"device='{device}', but torch sees no CUDA device: measure with device='cpu'"
            )
        return _measure_cuda_allocator(step, device)
    raise LocalLearningError(f"device='{device}' can't be measured: give 'cpu' or 'cuda'")


def _measure_storages(step: Callable[[], Any], watch: Any, tracker: StorageTracker) -> StepMemory:
    with StorageTracker():  # the first op under a mode imports much: not in the step's time
        torch.empty(0)
    baseline = tracker.watch(watch)
    start = time.perf_counter()
    with tracker:
        step()
    seconds = time.perf_counter() - start
    return _above(baseline, tracker, seconds)


def _measure_cuda_allocator(step: Callable[[], Any], device: torch.device) -> StepMemory:
    torch.cuda.synchronize(device)
    baseline = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    with _AllocatorSampler(device) as sampler:
        step()
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return _above(baseline, sampler, seconds)


def _above(
    baseline: int, found: Union[StorageTracker, _AllocatorSampler], seconds: float
) -> StepMemory:
    timeline = [(moment, nbytes - baseline) for moment, nbytes in found.timeline]
    phases = [(name, nbytes - baseline) for name, nbytes in found.phases]
    return StepMemory(found.peak - baseline, baseline, timeline, found.marks, seconds, phases)
