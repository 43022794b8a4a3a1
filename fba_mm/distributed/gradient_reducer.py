"""``GradientReducer``: gradients become means over all processes while training goes on.

Why not torch's own reducer, the one in ``DistributedDataParallel``? It waits for the processes at
the end of every backward call, and local learning makes one such call per module. Its waiting would
fall exactly where the next module's forward pass could hide it. It also counts on one backward pass
per forward pass of the wrapped module, while a shared head gets a part of its gradient in each of
K passes. What is kept of it: flat buckets in the order in which the backward pass completes them,
started from hooks on the parameters, in the same order in every process.
"""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import LocalLearningError


class _Bucket:
    """Gradients of some parameters in one tensor, on their way between the processes.

    Args:
        parameters: Of one data type, on one device.
        counts_users: Also find out whether any process has a gradient for a parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], counts_users: bool):
        self.parameters = parameters
        self._counts_users = counts_users
        self._flat: Optional[Tensor] = None
        self._work: Optional[dist.Work] = None

    def start(self, group: Optional[dist.ProcessGroup]) -> None:
        """Move the gradients into the bucket, which becomes their memory, and send it off."""
        first = self.parameters[0]
        total = sum(p.numel() for p in self.parameters)
        # One more number for each parameter: which processes have a gradient travels along.
        flags = len(self.parameters) if self._counts_users else 0
        flat = self._flat = first.new_empty(total + flags)
        offset = 0
        if flags:
            used = torch.tensor([p.grad is not None for p in self.parameters], dtype=flat.dtype)
            flat[total:].copy_(used, non_blocking=True)
        for parameter in self.parameters:
            place = _like(parameter, flat, offset)
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
            parameter.grad = place
            offset += parameter.numel()
        # Divided first, as half precision may overflow in the sum.
        flat.div_(dist.get_world_size(group))
        self._work = dist.all_reduce(flat, group=group, async_op=True)

    def finish(self) -> None:
        """Wait until the gradients are those of all processes."""
        self._work.wait()
        if self._counts_users:
            for parameter, users in zip(
                self.parameters, self._flat[-len(self.parameters) :].tolist()
            ):
                if not users:
                    parameter.grad = None  # As in one process: nothing to apply, no decay.
        self._work = self._flat = None


def _like(parameter: nn.Parameter, flat: Tensor, offset: int) -> Tensor:
    """A part of a flat tensor in the shape and, where that fills it, layout of a parameter."""
    dense = parameter.is_contiguous() or (
        parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    )
    if dense:
        return flat.as_strided(parameter.shape, parameter.stride(), offset)
    return flat[offset : offset + parameter.numel()].view(parameter.shape)


class GradientReducer:
    """Averages gradients over processes, a bucket at a time, without waiting for the result.

    Args:
        names: Names of the parameters, for errors.
        process_group: The processes; all, unless given.
        bucket_cap_mb: Size of a bucket, in MiB.
        find_unused_parameters: Allow that a backward pass gives some parameters no gradient. The
            others' mean then takes zeros from processes without one. Buckets start after the
            backward pass: which are complete during it could differ between processes, and with
            it the order of all communication.

    Example:
        >>> with reducer.reducing(module.parameters()):
        ...     loss.backward()
        ... # anything that doesn't need the gradients
        >>> for parameters in reducer.finish():
        ...     ...  # their gradients are means over all processes
    """

    def __init__(
        self,
        names: Dict[nn.Parameter, str],
        process_group: Optional[dist.ProcessGroup] = None,
        bucket_cap_mb: float = 25,
        find_unused_parameters: bool = False,
    ):
        self._names = names
        self._group = process_group
        self._bucket_bytes = bucket_cap_mb * 2**20
        self._find_unused = find_unused_parameters
        self._under_way: List[_Bucket] = []
        self._reduced: Set[nn.Parameter] = set()
        self.enabled = True
        # While gradients accumulate, they are those of each process.
        self.each_iteration = False

    def begin_iteration(self) -> None:
        """Forget what an iteration before has reduced, and wait for what it left under way."""
        for _ in self.finish():
            pass
        self._reduced.clear()

    @contextmanager
    def reducing(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Around the last backward pass of this iteration that gives these parameters gradients.

        Args:
            parameters: Those that were reduced in this iteration already are left alone.

        Raises:
            LocalLearningError: A parameter gets no gradient, or gets it in several parts.
        """
        buckets = self._buckets([p for p in parameters if p not in self._reduced])
        place = {p: i for i, bucket in enumerate(buckets) for p in bucket.parameters}
        waiting = [set(bucket.parameters) for bucket in buckets]
        started = 0

        def start_next() -> None:
            nonlocal started
            buckets[started].start(self._group)
            self._under_way.append(buckets[started])
            self._reduced.update(buckets[started].parameters)
            started += 1

        def on_gradient(parameter: nn.Parameter) -> None:
            remaining = waiting[place[parameter]]
            if parameter not in remaining:
                raise LocalLearningError(
                    f'{self._name(parameter)} gets its gradient in several parts, as with '
                    'activation checkpointing of a layer that runs more than once: switch off '
                    'with_cp, or train in one process'
                )
            remaining.remove(parameter)
            while started < len(buckets) and not waiting[started]:
                start_next()

        handles = (
            []
            if self._find_unused
            else [p.register_post_accumulate_grad_hook(on_gradient) for p in place]
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # Gradients of a shared head may all have come from passes before this one.
        self._check_complete(p for bucket in buckets[started:] for p in bucket.parameters)
        while started < len(buckets):
            start_next()

    def finish(self) -> Iterator[List[nn.Parameter]]:
        """Wait for what is under way, bucket by bucket; yields the parameters of each."""
        while self._under_way:
            bucket = self._under_way.pop(0)
            bucket.finish()
            yield bucket.parameters

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within this context, gradients stay those of each process."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _buckets(self, parameters: Sequence[nn.Parameter]) -> List[_Bucket]:
        # Backward passes complete parameters from the last to the first, more or less.
        kinds: Dict[Tuple[torch.dtype, torch.device], List[nn.Parameter]] = {}
        sizes: Dict[Tuple[torch.dtype, torch.device], int] = {}
        filled: List[List[nn.Parameter]] = []
        for parameter in reversed(parameters):
            kind = parameter.dtype, parameter.device
            if kind not in kinds or sizes[kind] + parameter.nbytes > self._bucket_bytes:
                kinds[kind], sizes[kind] = [], 0
                filled.append(kinds[kind])
            kinds[kind].append(parameter)
            sizes[kind] += parameter.nbytes
        return [_Bucket(members, self._find_unused) for members in filled]

    def _check_complete(self, parameters: Iterator[nn.Parameter]) -> None:
        if self._find_unused:
            return
        missing = [self._name(p) for p in parameters if p.grad is None]
        if missing:
            raise LocalLearningError(
                f'{len(missing)} parameters got no gradient, such as {missing[0]}: freeze them, or '
                "set model_wrapper_cfg=dict(type='LocalDataParallel', find_unused_parameters=True)"
            )

    def _name(self, parameter: nn.Parameter) -> str:
        return self._names.get(parameter, f'a parameter of shape {tuple(parameter.shape)}')
