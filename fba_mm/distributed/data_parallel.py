"""``LocalDataParallel``: local learning in several processes, each with a part of the batch."""

from contextlib import contextmanager
from typing import Iterator, Optional

import torch.distributed as dist
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from ..arguments import check_number
from ..errors import LocalLearningError
from .gradient_reducer import GradientReducer
from .placement import OpenStep, PlacedModel, Placement

# What torch's DistributedDataParallel broadcasts at once.
BROADCAST_BYTES = 250 * 2**20


class DataParallel(Placement):
    """The whole model in each process, with a part of the images.

    Args:
        model: The model, the same in all processes.
        process_group: See :class:`LocalDataParallel`.
        bucket_cap_mb: The same.
        broadcast_buffers: The same.
        find_unused_parameters: The same.

    Attributes:
        reducer: Takes the means of gradients over the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        process_group: Optional[dist.ProcessGroup] = None,
        bucket_cap_mb: float = 25,
        broadcast_buffers: bool = False,
        find_unused_parameters: bool = False,
    ):
        super().__init__(model)
        self._group = process_group
        self._broadcasts_buffers = broadcast_buffers
        self._optim_wrapper: Optional[OptimWrapper] = None
        self.reducer = GradientReducer(
            {p: name for name, p in model.named_parameters()},
            process_group,
            bucket_cap_mb,
            find_unused_parameters,
        )
        self._broadcast([p.detach() for p in model.parameters()])
        self._broadcast(list(model.buffers()))

    def _broadcast(self, tensors: list) -> None:
        if tensors:
            dist._broadcast_coalesced(self._group or dist.group.WORLD, tensors, BROADCAST_BYTES, 0)

    def attach(self, optim_wrapper: OptimWrapper, open_step: Optional[OpenStep] = None) -> None:
        """Hand the reducer over to the optimizer wrapper.

        Args:
            optim_wrapper: See :class:`Placement`.
            open_step: The same.

        Raises:
            LocalLearningError: The optimizer wrapper takes no local losses.
        """
        if not hasattr(optim_wrapper, 'reduce_with'):
            raise LocalLearningError(
                f'{type(optim_wrapper).__name__} does not reduce gradients with LocalDataParallel: '
                "set optim_wrapper.type='LocalOptimWrapper'"
            )
        self._optim_wrapper = optim_wrapper
        optim_wrapper.reduce_with(self.reducer)

    @contextmanager
    def iteration(self, optim_wrapper: OptimWrapper) -> Iterator[None]:
        """Around one training step of the model.

        Args:
            optim_wrapper: Attached now, unless it is; one module alone trains without FBAHook.
        """
        if optim_wrapper is not self._optim_wrapper:
            self.attach(optim_wrapper)
        self.reducer.begin_iteration()
        if self._broadcasts_buffers:
            self._broadcast(list(self.model.buffers()))
        yield


@MODEL_WRAPPERS.register_module()
class LocalDataParallel(PlacedModel):
    """Takes the place of MMEngine's ``MMDistributedDataParallel`` for local learning.

    All processes start from process 0's parameters and buffers. A module's gradients set off to the
    other processes as its backward pass completes them, and travel while the next module's forward
    pass runs. What modules share, a head for instance, is reduced once per step, after the last
    of its gradients. ``tools/train.py`` takes this wrapper by itself, as does any other training
    tool with ``configs/_base_/fba.py``.

    Args:
        module: The model, with a :class:`LocalBackbone`.
        process_group: The processes; all, unless given.
        bucket_cap_mb: Bucket size in MiB.
        broadcast_buffers: Also take over process 0's buffers before every training step.
        find_unused_parameters: Allow parameters without gradient; see :class:`GradientReducer`.

    Raises:
        LocalLearningError: There is one process alone, the processes have different models, or, in
            training, the optimizer wrapper takes no local losses.

    Example:
        >>> model_wrapper_cfg = dict(type='LocalDataParallel')
    """

    placement: DataParallel

    def __init__(
        self,
        module: nn.Module,
        process_group: Optional[dist.ProcessGroup] = None,
        bucket_cap_mb: float = 25,
        broadcast_buffers: bool = False,
        find_unused_parameters: bool = False,
    ):
        super().__init__(module)
        check_number(
            'model_wrapper_cfg.bucket_cap_mb',
            bucket_cap_mb,
            above=0,
            fix=', a size in MiB, such as 25',
        )
        self.placement = DataParallel(
            module, process_group, bucket_cap_mb, broadcast_buffers, find_unused_parameters
        )

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within this context, gradients stay those of each process, and add up there.

        ``accumulative_counts`` of the optimizer wrapper does so by itself.
        """
        with self.placement.reducer.no_sync():
            yield
