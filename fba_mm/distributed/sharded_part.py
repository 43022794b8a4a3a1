"""``ShardedPart``: parameters that are in pieces, but for the time in which they are needed.

It puts torch's ``fully_shard`` to a use of its own. That one gathers in a hook before a module's
``forward``, and reduces in a hook of the backward pass that follows. Here, a module of local
learning is a row of segments, which no ``forward`` runs, its loss asks for ``forward`` of others'
heads, and gradients come from several backward passes. So parts are gathered and reduced by call,
outside of any pass.
"""

from typing import Any, Dict, List, Sequence, Set, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..compat.torch_versions import DeviceMesh, DTensor, Replicate, fully_shard
from ..errors import LocalLearningError


class ShardedPart(nn.Module):
    """Some parameters of a model, of which each process keeps a piece.

    The optimizer holds the pieces, as ``DTensor``. What can't be split, a scalar, is whole in every
    process; for the optimizer it is a ``DTensor`` as well, of the same memory.

    Args:
        model: The model.
        parameters: Those that belong to this part, of one data type.
        mesh: The processes, in one dimension.
        find_unused_parameters: Allow that a parameter gets no gradient.

    Raises:
        LocalLearningError: ``fully_shard`` can't split a parameter.

    Attributes:
        names: Of the parameters, in the model.
        pieces: What the optimizer holds of each.

    Example:
        >>> part.gather()            # the model's parameters are whole
        >>> loss(model).backward()   # as often as it takes
        >>> part.reduce()            # each process has its piece of the mean gradient
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Set[nn.Parameter],
        mesh: DeviceMesh,
        find_unused_parameters: bool = False,
    ):
        super().__init__()
        names = {p: name for name, p in model.named_parameters() if p in parameters}
        _check_divisible(names)
        self.names = list(names.values())
        self._find_unused = find_unused_parameters
        self._group = mesh.get_group()
        self._places: List[Tuple[nn.Module, str]] = []
        for name in self.names:
            owner, _, attribute = name.rpartition('.')
            self._places.append((model.get_submodule(owner), attribute))
        scalars = [p for p in names if p.dim() == 0]
        # fully_shard looks for what is not ignored in the modules below this one.
        self.model = model
        fully_shard(
            self,
            mesh=mesh,
            reshard_after_forward=False,
            ignored_params=set(model.parameters()) - parameters | set(scalars),
        )
        self.gathered = False
        # What waits for a gathering that was begun ahead of its time.
        self._under_way: Any = None
        # For the optimizer, which holds pieces alone.
        self.scalars = {
            p: nn.Parameter(
                DTensor.from_local(p.detach(), mesh, [Replicate()], run_check=False),
                requires_grad=p.requires_grad,
            )
            for p in scalars
        }
        self.pieces = [self.scalars.get(p, p) for p in self._present()]

    def forward(self, x: Tensor) -> Tensor:
        """Stands for the forward pass that ``fully_shard`` waits for, see :meth:`reduce`.

        Args:
            x: A number that requires a gradient.
        """
        return x * 1

    def begin_gathering(self) -> None:
        """Have the pieces travel from now on; :meth:`gather` waits for them."""
        if not self.gathered and self._under_way is None:
            self._under_way = self.unshard(async_op=True)

    def gather(self) -> None:
        """Make the model's parameters whole, in all processes."""
        if not self.gathered:
            self.begin_gathering()
            self._arrive()
            self.gathered = True

    def _arrive(self) -> None:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def release(self) -> None:
        """Free all but this process's pieces."""
        self._arrive()  # After an error, say, before the module ran.
        self.reshard()
        self.gathered = False

    def reduce(self) -> None:
        """Take the mean of the gradients over the processes, keep a piece of it, and release.

        Gradients add up to what the pieces have from earlier iterations.

        Raises:
            LocalLearningError: A parameter got no gradient.
        """
        present = self._present()
        unused = self._complete(present)
        trained = [p for p in present if p in self.scalars and p.requires_grad]
        if trained:
            flat = torch.stack([p.grad for p in trained]) / self._group.size()
            dist.all_reduce(flat, group=self._group)
            for parameter, gradient in zip(trained, flat):
                piece = self.scalars[parameter]
                gradient = DTensor.from_local(
                    gradient, piece.device_mesh, piece.placements, run_check=False
                )
                piece.grad = gradient if piece.grad is None else piece.grad + gradient
                parameter.grad = None
        # fully_shard reduces at the end of a backward pass that follows a forward pass.
        self(torch.zeros((), device=present[0].device, requires_grad=True)).backward()
        self.release()
        for i in unused:
            self.pieces[i].grad = None  # As in one process: nothing to apply, no decay.

    def _present(self) -> List[nn.Parameter]:
        """The model's parameters as they are now: whole, or pieces."""
        return [getattr(owner, name) for owner, name in self._places]

    def _complete(self, present: Sequence[nn.Parameter]) -> List[int]:
        """Give zeros to parameters without gradient, if that is allowed; those that no process has.

        All processes have to reduce the same.
        """
        missing = [i for i, p in enumerate(present) if p.requires_grad and p.grad is None]
        if not self._find_unused:
            if missing:
                raise LocalLearningError(
                    f'{len(missing)} parameters got no gradient, such as {self.names[missing[0]]}: '
                    'freeze them, or set model_wrapper_cfg=dict(type='
                    "'LocalShardedDataParallel', find_unused_parameters=True)"
                )
            return []
        used = torch.tensor(
            [p.grad is not None for p in present], dtype=torch.float32, device=present[0].device
        )
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=self._group)
        for i in missing:
            present[i].grad = torch.zeros_like(present[i])
        # With gradients of earlier iterations, zeros leave them as they are.
        return [i for i in missing if not used[i] and self.pieces[i].grad is None]


def _check_divisible(names: Dict[nn.Parameter, str]) -> None:
    kinds = {p.dtype for p in names if p.requires_grad}
    if len(kinds) > 1:
        raise LocalLearningError(
            f'parameters of {" and ".join(sorted(map(str, kinds)))} in one module cannot be '
            'sharded together: keep one data type, or set '
            "model_wrapper_cfg.type='LocalDataParallel'"
        )
    for parameter, name in names.items():
        if not parameter.is_contiguous():
            raise LocalLearningError(
                f'{name} is not contiguous in memory and cannot be sharded: leave the memory '
                "format channels_last out, or set model_wrapper_cfg.type='LocalDataParallel'"
            )
