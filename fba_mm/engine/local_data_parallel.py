"""``LocalDataParallel``: local learning in several processes, each with a part of the batch."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

import torch.distributed as dist
from mmengine.dist import is_distributed
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..arguments import check_number
from ..errors import LocalLearningError
from .gradient_reducer import GradientReducer
from .local_optim_wrapper import LocalOptimWrapper
from .processes import check_agreement

# What torch's DistributedDataParallel broadcasts at once.
_BROADCAST_BYTES = 250 * 2**20


@MODEL_WRAPPERS.register_module()
class LocalDataParallel(nn.Module):
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

    def __init__(
        self,
        module: nn.Module,
        process_group: Optional[dist.ProcessGroup] = None,
        bucket_cap_mb: float = 25,
        broadcast_buffers: bool = False,
        find_unused_parameters: bool = False,
    ):
        super().__init__()
        if not is_distributed():
            raise LocalLearningError(
                'LocalDataParallel needs several processes: start them with tools/dist_train.sh, '
                'or train the model without it'
            )
        check_number(
            'model_wrapper_cfg.bucket_cap_mb',
            bucket_cap_mb,
            above=0,
            fix=', a size in MiB, such as 25',
        )
        check_agreement(
            'model',
            {
                name: f'{tuple(p.shape)} {p.dtype}{"" if p.requires_grad else ", frozen"}'
                for name, p in module.named_parameters()
            },
        )
        self.module = module
        self.broadcast_buffers = broadcast_buffers
        self._group = process_group
        self.reducer = GradientReducer(
            {p: name for name, p in module.named_parameters()},
            process_group,
            bucket_cap_mb,
            find_unused_parameters,
        )
        self._broadcast([p.detach() for p in module.parameters()])
        self._broadcast(list(module.buffers()))

    def _broadcast(self, tensors: list) -> None:
        if tensors:
            dist._broadcast_coalesced(self._group or dist.group.WORLD, tensors, _BROADCAST_BYTES, 0)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> Dict[str, Tensor]:
        """One training iteration of the model, as its own ``train_step`` does it.

        Args:
            data: This process's part of the batch, as the dataloader gives it.
            optim_wrapper: A :class:`LocalOptimWrapper`.

        Returns:
            The model's log variables, of this process's part.
        """
        if not isinstance(optim_wrapper, LocalOptimWrapper):
            raise LocalLearningError(
                f'{type(optim_wrapper).__name__} does not reduce gradients with LocalDataParallel: '
                "set optim_wrapper.type='LocalOptimWrapper'"
            )
        optim_wrapper.reducer = self.reducer
        self.reducer.begin_iteration()
        if self.broadcast_buffers:
            self._broadcast(list(self.module.buffers()))
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

    def forward(self, *args, **kwargs) -> Any:
        """The model's own forward pass."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within this context, gradients stay those of each process, and add up there.

        ``accumulative_counts`` of the optimizer wrapper does so by itself.
        """
        with self.reducer.no_sync():
            yield
