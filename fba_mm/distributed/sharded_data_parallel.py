"""``LocalShardedDataParallel``: data parallel training of modules that are whole one at a time."""

from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set

import torch.distributed as dist
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from ..compat.torch_versions import (
    DeviceMesh,
    DTensor,
    check_fully_shard,
    distribute_tensor,
    init_device_mesh,
)
from ..errors import LocalLearningError
from ..local import find_local_backbone
from .data_parallel import DataParallel
from .placement import OpenStep, PlacedModel
from .sharded_part import ShardedPart
from .sharded_reducer import ShardedReducer

_FIX = "set model_wrapper_cfg.type='LocalDataParallel'"


class Sharded(DataParallel):
    """A piece of each parameter in each process, and a part of the images.

    Args:
        model: The model, the same in all processes, with a :class:`LocalBackbone`.
        process_group: See :class:`LocalShardedDataParallel`.
        broadcast_buffers: The same.
        find_unused_parameters: The same.
        prefetch: The same.

    Attributes:
        parts: What is gathered at once, in order: those of the modules, and the rest of the model.
    """

    is_whole = False

    def __init__(
        self,
        model: nn.Module,
        process_group: Optional[dist.ProcessGroup] = None,
        broadcast_buffers: bool = False,
        find_unused_parameters: bool = False,
        prefetch: bool = False,
    ):
        self._prefetch = prefetch
        self._backbone = find_local_backbone(model, 'LocalShardedDataParallel')
        super().__init__(
            model,
            process_group,
            broadcast_buffers=broadcast_buffers,
            find_unused_parameters=find_unused_parameters,
        )
        self._find_unused = find_unused_parameters
        self.parts: List[ShardedPart] = []
        # By module; the last one has the model's neck and head, and what else is no module's.
        self._part_of_module: Dict[int, ShardedPart] = {}
        self._rest: Optional[ShardedPart] = None

    def check(self, runner: Runner, scope: str) -> None:
        """Refuse, before training, what needs more than one module at a time.

        Args:
            runner: See :class:`Placement`.
            scope: Of the feature bank.

        Raises:
            LocalLearningError: Says what is wrong and how to fix it.
        """
        wrapper = runner.optim_wrapper
        if scope == 'all':
            raise LocalLearningError(
                "the extra pass of FBAHook's scope='all' needs all modules at once, and they are "
                f"gathered one by one: set scope='past', or {_FIX}"
            )
        for module in self.model.modules():
            if getattr(module, 'follows_next_module', False):
                raise LocalLearningError(
                    f'{type(module).__name__} follows the weights of the next module, which are in '
                    f'pieces then: take another auxiliary network, or {_FIX}'
                )
        if not wrapper.by_parameter:
            raise LocalLearningError(
                f'{type(wrapper.optimizer).__name__} may look at all gradients at once, as LAMB '
                "does, and they are in pieces: take one of torch's optimizers, set "
                "optim_wrapper.apply='eager' where it treats each parameter by itself and knows "
                f"torch's DTensor, or {_FIX}"
            )
        if wrapper.scales_losses:
            raise LocalLearningError(
                'an overflow in a piece of the gradients is seen by one process alone: set '
                f"optim_wrapper.dtype='bfloat16', which needs no loss scale, or {_FIX}"
            )
        for hook in getattr(runner, 'hooks', ()):
            if isinstance(hook, EMAHook):
                raise LocalLearningError(
                    'EMAHook averages a network that is whole, which no process has: leave it out, '
                    f'or {_FIX}'
                )
            if isinstance(hook, CheckpointHook) and not hasattr(hook, 'saves_whole_model'):
                raise LocalLearningError(
                    f"{type(hook).__name__} would save one process's pieces: set "
                    "default_hooks.checkpoint.type='AtomicCheckpointHook'"
                )

    def attach(self, optim_wrapper: OptimWrapper, open_step: Optional[OpenStep] = None) -> None:
        """Divide the parameters and the optimizer's state, and hand the reducer over.

        Args:
            optim_wrapper: See :class:`Placement`.
            open_step: The same.

        Raises:
            LocalLearningError: The optimizer wrapper takes no local losses, modules share a layer,
                or a parameter can't be divided.
        """
        if hasattr(optim_wrapper, 'reduce_with') and not self.parts:
            self._shard(optim_wrapper)
        for part in self.parts:
            part.release()
        super().attach(optim_wrapper, open_step)

    def _shard(self, optim_wrapper: OptimWrapper) -> None:
        kind = next(self.model.parameters()).device.type
        mesh = (
            init_device_mesh(kind, (dist.get_world_size(),))
            if self._group is None
            else DeviceMesh.from_group(self._group, kind)
        )
        whole = dict(self.model.named_parameters())
        *modules, rest = self._parameters_by_part()
        for k, parameters in enumerate(modules):
            if parameters:
                self._part_of_module[k] = ShardedPart(
                    self.model, parameters, mesh, self._find_unused
                )
        self.parts.extend(self._part_of_module.values())
        if rest:
            self._rest = ShardedPart(self.model, rest, mesh, self._find_unused)
            self.parts.append(self._rest)
        _shard_optimizer(
            optim_wrapper.optimizer,
            {
                whole[name]: piece
                for part in self.parts
                for name, piece in zip(part.names, part.pieces)
            },
        )
        self.reducer = ShardedReducer(self.parts)

    def _parameters_by_part(self) -> List[Set[nn.Parameter]]:
        """The parameters of each module with its auxiliary network, and of the rest."""
        backbone = self._backbone
        names = {p: name for name, p in self.model.named_parameters()}
        # The network's own last layers are a head like another, which modules may share.
        head = {
            p
            for name in backbone.head_layers()
            for p in backbone.backbone.get_submodule(name).parameters()
        }
        found: Dict[nn.Parameter, int] = {}
        for k, module in enumerate(backbone.module_segments):
            parameters = [
                p
                for i in module
                for p in backbone.segments[i].parameters(backbone.backbone)
                if p not in head
            ]
            if k < len(backbone.auxiliary):
                parameters.extend(backbone.auxiliary[k].parameters())
            for p in parameters:
                if found.setdefault(p, k) != k:
                    raise LocalLearningError(
                        f'{names[p]} is part of modules {found[p] + 1} and {k + 1}, and each is '
                        f'freed before the next one runs: set a smaller num_modules, or {_FIX}'
                    )
        parts = [
            {p for p, owner in found.items() if owner == k} for k in range(backbone.num_modules)
        ]
        return [*parts, names.keys() - found.keys()]

    @property
    def _rest_is_shared(self) -> bool:
        """Whether earlier modules than the last one may need the model's own neck and head."""
        if self._backbone.num_modules == 1:
            return True
        try:
            for auxiliary in self._backbone.auxiliary:
                auxiliary.check_module_parallel()
        except LocalLearningError:
            return True
        return False

    def enter(self, index: int) -> None:
        """Have a module's parameters before it runs, and no other module's.

        Args:
            index: 0 to K - 1; with the last one come the model's own neck and head.
        """
        for k, part in self._part_of_module.items():
            # One with nothing to train has no backward pass of its own that would release it.
            if k < index and part.gathered:
                part.release()
        if index in self._part_of_module:
            self._part_of_module[index].gather()
        last = self._backbone.num_modules - 1
        if index == last and self._rest is not None:
            self._rest.gather()
        if self._prefetch:
            if index + 1 in self._part_of_module:
                self._part_of_module[index + 1].begin_gathering()
            if index + 1 == last and self._rest is not None:
                self._rest.begin_gathering()

    @contextmanager
    def iteration(self, optim_wrapper: OptimWrapper) -> Iterator[None]:
        """Around one training step of the model.

        Args:
            optim_wrapper: See :class:`DataParallel`.
        """
        if optim_wrapper is not self._optim_wrapper:
            self.attach(optim_wrapper)
        for part in self.parts:
            part.release()  # Validation has gathered them.
        if self._rest_is_shared and self._rest is not None:
            self._rest.gather()
        with super().iteration(optim_wrapper):
            yield
        for part in self.parts:
            if part.gathered:  # Nothing in it is trained.
                part.release()

    def gather_weights(self, averages: Iterable[nn.Module] = ()) -> None:
        """Give all processes all weights, until the next training step.

        Args:
            averages: See :class:`Placement`.
        """
        for part in self.parts:
            # A state dict, which one process alone may have made, has released its part.
            part.release()
            part.gather()

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within this context, the model's state dict in process 0 has whole tensors, on the CPU.

        All processes have to come here.
        """
        weights: Dict[int, Tensor] = {}
        names: Dict[str, int] = {}
        for part in self.parts:
            part.release()
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if isinstance(parameter, DTensor):
                names[name] = id(parameter)
                if id(parameter) not in weights:
                    weights[id(parameter)] = _whole(parameter)

        def replace(module: nn.Module, state_dict: dict, prefix: str, _: dict) -> None:
            for name, place in names.items():
                if prefix + name in state_dict:
                    state_dict[prefix + name] = weights[place]

        handle = self.model.register_state_dict_post_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def whole_model(
        self, optim_wrapper: OptimWrapper, averages: Iterable[nn.Module] = ()
    ) -> Iterator[None]:
        """As :meth:`whole_weights`; process 0's optimizer has the whole state, on the CPU.

        Args:
            optim_wrapper: Of this process.
            averages: See :class:`Placement`.
        """
        with self.whole_weights(), self._whole_optimizer(optim_wrapper):
            yield

    @contextmanager
    def _whole_optimizer(self, optim_wrapper: OptimWrapper) -> Iterator[None]:
        optimizer = optim_wrapper.optimizer
        pieces = {}
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter in optimizer.state:
                    pieces[parameter] = optimizer.state[parameter]
        whole = {
            p: {name: _whole(value) for name, value in state.items()} for p, state in pieces.items()
        }
        optimizer.state.update(whole)
        try:
            yield
        finally:
            optimizer.state.update(pieces)


def _whole(value: Any) -> Any:
    """All of a tensor in pieces, for process 0; other processes take part, and drop it."""
    if not isinstance(value, DTensor):
        return value
    value = value.detach().full_tensor()
    return value.cpu() if get_rank() == 0 else None


def _shard_optimizer(optimizer: Optimizer, replaced: Dict[nn.Parameter, nn.Parameter]) -> None:
    """Put pieces in the place of parameters, also in a state that was loaded."""
    for group in optimizer.param_groups:
        group['params'] = [replaced.get(p, p) for p in group['params']]
    for parameter, piece in replaced.items():
        if parameter not in optimizer.state:
            continue
        state = optimizer.state.pop(parameter)
        optimizer.state[piece] = {
            # Counts of steps are scalars like some parameters, but nobody's piece.
            name: _piece(value, piece)
            if isinstance(value, Tensor) and name != 'step' and value.shape == piece.shape
            else value
            for name, value in state.items()
        }


def _piece(value: Tensor, like: DTensor) -> DTensor:
    # A copy: a part of the whole would keep the whole.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()


@MODEL_WRAPPERS.register_module()
class LocalShardedDataParallel(PlacedModel):
    """:class:`LocalDataParallel` with parameters, gradients and optimizer state in pieces.

    Each process keeps one piece of every parameter, of its gradient and of the optimizer's state,
    by torch's ``fully_shard`` (ZeRO, stage 3: Rajbhandari et al., "ZeRO: Memory Optimizations
    Toward Training Trillion Parameter Models", SC 2020). A module's parameters are gathered before
    it runs and are freed after its local backward pass, before the next module runs. The model's
    own neck and head are gathered with the last module; where modules share them, for the whole
    step.

    Parameters are divided when training begins, with weights initialized or loaded. Until then, in
    validation and after training, every process has all weights. Checkpoints are those of one
    process.

    Args:
        module: The model, with a :class:`LocalBackbone`.
        process_group: The processes; all, unless given.
        broadcast_buffers: Also take over process 0's buffers before every training step.
        find_unused_parameters: Allow parameters without gradient.
        prefetch: Gather the next module's parameters while a module runs, where a process would
            otherwise wait for them. Two modules' parameters are whole at once then.

    Raises:
        LocalLearningError: As :class:`LocalDataParallel`; torch is older than 2.6; there is no
            LocalBackbone; or, when training begins, modules share a layer, or a parameter can't be
            divided.

    Example:
        >>> model_wrapper_cfg = dict(type='LocalShardedDataParallel')
    """

    placement: Sharded

    def __init__(
        self,
        module: nn.Module,
        process_group: Optional[dist.ProcessGroup] = None,
        broadcast_buffers: bool = False,
        find_unused_parameters: bool = False,
        prefetch: bool = False,
    ):
        check_fully_shard()
        super().__init__(module)
        self.placement = Sharded(
            module, process_group, broadcast_buffers, find_unused_parameters, prefetch
        )

    def no_sync(self) -> None:
        """There is no such thing: gradients are in pieces from each backward pass on."""
        raise LocalLearningError(
            'LocalShardedDataParallel has no gradients of single processes: set '
            'optim_wrapper.accumulative_counts, or take LocalDataParallel'
        )
