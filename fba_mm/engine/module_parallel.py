"""``LocalModuleParallel``: modules in several processes, each at work on a batch of its own."""

import inspect
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size, is_distributed
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor, nn

from ..arguments import check_count
from ..errors import LocalLearningError
from ..local import LocalBackbone
from ..local.partition.balance import smallest_maximum
from ..local.stage_state import HandedOver
from .local_optim_wrapper import AmpLocalOptimWrapper, LocalOptimWrapper
from .message_channel import MessageChannel
from .processes import check_agreement
from .undivided_samplers import UNDIVIDED

# What torch's DistributedDataParallel broadcasts at once.
_BROADCAST_BYTES = 250 * 2**20
# What layers and losses call that take means over processes.
_COLLECTIVES = ('reduce_mean(', 'all_reduce(', 'all_gather(')
_FIX = "set model_wrapper_cfg.type='LocalDataParallel'"


@MODEL_WRAPPERS.register_module()
class LocalModuleParallel(nn.Module):
    """Trains the modules of a :class:`LocalBackbone` in several processes, as one would.

    Nothing flows back between modules, so that a process trains its own on one batch, sends their
    output off, and goes on with the next batch while the next process trains on the first. A
    module's step on batch t comes before it sees batch t + 1, as in one process, so that the
    result is the same (decoupled training: Belilovsky et al., "Decoupled Greedy Learning of CNNs",
    ICML 2020, algorithm 1).

    The first modules are in the last process, which reads the data, and the last module with the
    model's neck and head in process 0, which logs and saves: when it is done with an iteration,
    all others are, and its log is that of one process. Every process holds all parameters, but
    activations, gradients and the optimizer's state of its own modules alone. Before validation
    and checkpoints, all processes get all weights.

    Args:
        module: The model, with a :class:`LocalBackbone` whose modules have heads of their own.
        modules_per_process: How many modules are together, from the first module on, so
            ``[2, 1, 1]`` for 4 modules in 3 processes. Unset, the process that keeps most for its
            backward passes keeps as little as possible; heads aren't counted.

    Raises:
        LocalLearningError: There is one process alone, there are fewer modules than processes, the
            processes have different models, or something ties modules together, such as a shared
            head.

    Example:
        >>> model_wrapper_cfg = dict(type='LocalModuleParallel')
    """

    def __init__(self, module: nn.Module, modules_per_process: Optional[Sequence[int]] = None):
        super().__init__()
        if not is_distributed():
            raise LocalLearningError(
                'LocalModuleParallel needs several processes: start them with tools/dist_train.sh, '
                'or leave model_wrapper_cfg out'
            )
        check_agreement(
            'model',
            {
                name: f'{tuple(p.shape)} {p.dtype}{"" if p.requires_grad else ", frozen"}'
                for name, p in module.named_parameters()
            },
        )
        self.module = module
        self._name, self._backbone = _local_backbone_of(module)
        _check_untied(module, self._backbone)
        count = get_world_size()
        # By stage, from the first module on; stage s is process count - 1 - s.
        self.spans = _spans(self._backbone, count, modules_per_process)
        rank = get_rank()
        self.modules_here = self._backbone.modules_here = self.spans[count - 1 - rank]
        self._ranks = self._rank_by_name()
        self._check_parameters()
        self._foreign = [
            (name, p) for name, p in module.named_parameters() if self._ranks[name] != rank
        ]
        device = next(module.parameters()).device
        self._before = MessageChannel(rank + 1, device) if rank + 1 < count else None
        self._after = MessageChannel(rank - 1, device) if rank else None
        self._rank = rank
        # FBAHook puts its own here.
        self.log: Dict[str, Tensor] = {}
        self.bytes_sent = 0
        self._broadcast(module, [0])

    @property
    def reads_data(self) -> bool:
        """Whether this process has the first module, and with it the batches."""
        return self._before is None

    def describe(self) -> str:
        """A line that says which modules are where."""
        last = len(self.spans) - 1
        return 'Module parallel: ' + ', '.join(
            f'module{"s" if len(span) > 1 else ""} '
            f'{"-".join(str(k + 1) for k in sorted({span[0], span[-1]}))} in process {last - s}'
            for s, span in enumerate(self.spans)
        )

    def train_step(self, data: Any, optim_wrapper: LocalOptimWrapper) -> Dict[str, Tensor]:
        """One training iteration of this process's modules.

        Args:
            data: The batch, as the dataloader gives it; looked at where :attr:`reads_data`.
            optim_wrapper: A :class:`LocalOptimWrapper`.

        Returns:
            In process 0 the model's log variables, elsewhere the sum of this process's losses as
            ``'loss'``.
        """
        model = self.module
        with optim_wrapper.optim_context(model):
            if self.reads_data:
                data = model.data_preprocessor(data, True)
            else:
                data, self._backbone.received, log = self._before.receive()
                self.log.update(log)
            try:
                losses = model._run_forward(data, mode='loss')
            except HandedOver as done:
                losses = None
                # Under way while this process's optimizer steps and its next batch is computed.
                self.bytes_sent += self._after.send((data, done.state, dict(self.log)))
            finally:
                self._backbone.received = None
        self._check_gradients()
        if losses is None:
            optim_wrapper.update_without_loss()
            own = [f'local_{k + 1}.loss' for k in self.modules_here]
            # Modules that are frozen have none.
            return dict(loss=sum(self.log[name] for name in own if name in self.log))
        loss, log_vars = model.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log_vars

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

    def gather_weights(self, copies: Iterable[nn.Module] = ()) -> None:
        """Give all processes all weights and buffers, from the process that trains each.

        Waits until all processes have come here, with all batches before.

        Args:
            copies: Models of the same kind, averages of the weights say, of which each process has
                brought up its own modules' part to date.
        """
        self._flush()
        for model in (self.module, *copies):
            self._broadcast(model, range(len(self.spans)))

    @contextmanager
    def whole_optimizer(self, optim_wrapper: LocalOptimWrapper) -> Iterator[None]:
        """Within this context, process 0's optimizer also holds the others' state.

        Args:
            optim_wrapper: Of this process.
        """
        self._flush()
        optimizer = optim_wrapper.optimizer
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        if self._rank:
            channel = MessageChannel(0, parameters[0].device)
            channel.send(
                {i: optimizer.state[p] for i, p in enumerate(parameters) if p in optimizer.state}
            )
            channel.flush()
        else:
            for rank in range(1, len(self.spans)):
                channel = MessageChannel(rank, parameters[0].device)
                for i, state in channel.receive().items():
                    optimizer.state[parameters[i]] = state
        try:
            yield
        finally:
            self.drop_foreign_state(optim_wrapper)

    def drop_foreign_state(self, optim_wrapper: LocalOptimWrapper) -> None:
        """Free what the optimizer holds for other processes' modules, from a checkpoint say.

        Args:
            optim_wrapper: Of this process.
        """
        for _, parameter in self._foreign:
            optim_wrapper.optimizer.state.pop(parameter, None)

    def _flush(self) -> None:
        if self._after is not None:
            self._after.flush()

    def _broadcast(self, model: nn.Module, ranks: Iterable[int]) -> None:
        """Take over tensors from the ranks that train them, or all from one."""
        tensors = dict((*model.named_parameters(), *model.named_buffers()))
        ranks = list(ranks)
        for rank in ranks:
            own = [
                t.detach()
                for name, t in tensors.items()
                if len(ranks) == 1 or self._ranks[name] == rank
            ]
            if own:
                dist._broadcast_coalesced(dist.group.WORLD, own, _BROADCAST_BYTES, rank)

    def _rank_by_name(self) -> Dict[str, int]:
        """Which process trains each parameter and brings each buffer up to date."""
        backbone = self._backbone
        prefixes: List[Tuple[str, int]] = []
        for stage, span in enumerate(self.spans):
            rank = len(self.spans) - 1 - stage
            for k in span:
                segments = [backbone.segments[i] for i in backbone.module_segments[k]]
                names = [
                    f'backbone.{name}'
                    for segment in segments
                    for name in (*segment.submodules, *segment.own_parameters)
                ]
                if k < len(backbone.auxiliary):
                    names.append(f'auxiliary.{k}')
                prefixes.extend((f'{self._name}.{name}', rank) for name in names)
        ranks = {}
        for name, _ in (*self.module.named_parameters(), *self.module.named_buffers()):
            # The model's own neck and head, and what no segment knows, are with the last module.
            ranks[name] = next(
                (rank for prefix, rank in prefixes if f'{name}.'.startswith(f'{prefix}.')), 0
            )
        return ranks

    def _check_parameters(self) -> None:
        names = {p: name for name, p in self.module.named_parameters()}
        last = len(self.spans) - 1
        trained: Dict[nn.Parameter, int] = {}
        for stage, span in enumerate(self.spans):
            for k in span:
                if k == self._backbone.num_modules - 1:
                    segments = self._backbone.module_segments[k]
                    parameters = [
                        p
                        for i in segments
                        for p in self._backbone.segments[i].parameters(self._backbone.backbone)
                    ]
                else:
                    parameters = self._backbone.local_parameters(k)
                for p in parameters:
                    if p.requires_grad and trained.setdefault(p, stage) != stage:
                        raise LocalLearningError(
                            f'{names[p]} is part of modules in process {last - trained[p]} and in '
                            f'process {last - stage}: give model_wrapper_cfg.modules_per_process '
                            'with these in one'
                        )

    def _check_gradients(self) -> None:
        """What a module's loss gives to other processes' parameters would be lost."""
        for name, parameter in self._foreign:
            if parameter.grad is not None:
                raise LocalLearningError(
                    f'{name} gets a gradient in process {self._rank}, and is trained in process '
                    f'{self._ranks[name]}: give modules heads of their own, or {_FIX}'
                )


def _local_backbone_of(model: nn.Module) -> Tuple[str, LocalBackbone]:
    for name, module in model.named_modules():
        if isinstance(module, LocalBackbone):
            return name, module
    raise LocalLearningError(
        'LocalModuleParallel found no LocalBackbone in the model: wrap the backbone, or leave '
        'model_wrapper_cfg out'
    )


def _spans(
    backbone: LocalBackbone, count: int, modules_per_process: Optional[Sequence[int]]
) -> List[range]:
    """The modules of each process, from the first module on."""
    if backbone.num_modules < count:
        raise LocalLearningError(
            f'{count} processes for num_modules={backbone.num_modules}: set that to {count} or '
            'more, or start as many processes as there are modules'
        )
    if modules_per_process is None:
        costs = [
            sum(backbone.footprints[i].saved_bytes for i in module)
            for module in backbone.module_segments
        ]
        return [range(start, end) for start, end in smallest_maximum(costs, count)]
    sizes = list(modules_per_process)
    for size in sizes:
        check_count('model_wrapper_cfg.modules_per_process', size, what='numbers of modules')
    if len(sizes) != count or sum(sizes) != backbone.num_modules:
        raise LocalLearningError(
            f'model_wrapper_cfg.modules_per_process={sizes}: give {count} numbers, one for '
            f'each process, with the sum {backbone.num_modules}'
        )
    starts = [sum(sizes[:i]) for i in range(count)]
    return [range(start, start + size) for start, size in zip(starts, sizes)]


def _check_untied(model: nn.Module, backbone: LocalBackbone) -> None:
    """Refuse models whose modules need more of each other than features."""
    for auxiliary in backbone.auxiliary:
        auxiliary.check_module_parallel()
    if type(model).train_step is not BaseModel.train_step:
        raise LocalLearningError(
            f'{type(model).__name__} trains in steps of its own, which LocalModuleParallel does '
            f'not know: {_FIX}'
        )
    seen: Set[type] = set()
    for name, module in model.named_modules():
        # torch's and mmcv's.
        if any(kind.__name__ == 'SyncBatchNorm' for kind in type(module).__mro__):
            raise LocalLearningError(
                f'{name} would wait for processes that are at work on other batches: set norm_cfg '
                "to dict(type='BN'), and leave sync_bn out; every module sees its whole batch"
            )
        for kind in set(type(module).__mro__) - seen:
            seen.add(kind)
            if _communicates(kind):
                raise LocalLearningError(
                    f'{kind.__name__} ({name}) takes means over processes, which are at work on '
                    f'different batches here: take another head or loss, or {_FIX}'
                )


def _communicates(kind: type) -> bool:
    if kind.__module__.split('.')[0] in ('builtins', 'torch', 'mmengine', 'fba_mm'):
        return False
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return False  # Defined in a session, not in a file.
    return any(call in source for call in _COLLECTIVES)


def check_module_parallel(runner, scope: str) -> None:
    """Refuse, before training, what can't be the same as in one process.

    Args:
        runner: MMEngine's runner, whose model is a :class:`LocalModuleParallel`.
        scope: Of the feature bank.

    Raises:
        LocalLearningError: Says what is wrong and how to fix it.
    """
    wrapper = runner.optim_wrapper
    if scope == 'all':
        raise LocalLearningError(
            "the extra pass of FBAHook's scope='all' runs through the modules of all processes: "
            f"set scope='past', or {_FIX}"
        )
    if wrapper.clip_grad_kwargs and wrapper.apply == 'end':
        raise LocalLearningError(
            "optim_wrapper.clip_grad with apply='end' takes the norm over the modules of all "
            "processes: set optim_wrapper.apply='eager', which clips each module by its own, or "
            'leave clip_grad out'
        )
    if not wrapper.by_parameter:
        kind = type(wrapper.optimizer).__name__
        raise LocalLearningError(
            f'{kind} may look at all gradients at once, as LAMB does, and each process has those '
            "of its modules: take one of torch's optimizers, or, where it treats each parameter by "
            "itself, set optim_wrapper.apply='eager'"
        )
    if isinstance(wrapper, AmpLocalOptimWrapper) and wrapper.loss_scaler.is_enabled():
        raise LocalLearningError(
            'one loss scale for all modules would have to wait for all processes: set '
            "optim_wrapper.dtype='bfloat16', which needs none"
        )
    if (getattr(runner, 'auto_scale_lr', None) or {}).get('enable'):
        raise LocalLearningError(
            "the batch of module parallel training is one process's, and auto_scale_lr counts "
            'all: leave --auto-scale-lr out, and set optim_wrapper.optimizer.lr'
        )
    for hook in getattr(runner, 'hooks', ()):
        if isinstance(hook, CheckpointHook) and not hasattr(hook, 'saves_whole_model'):
            raise LocalLearningError(
                f"{type(hook).__name__} would save one process's modules: set "
                "default_hooks.checkpoint.type='AtomicCheckpointHook'"
            )
    sampler = getattr(_dataloader_of(runner), 'sampler', None)
    if getattr(sampler, 'world_size', 1) != 1:
        fix = next((new.__name__ for old, new in UNDIVIDED.items() if type(sampler) is old), None)
        fix = f'set it to {fix!r}' if fix else f'take UndividedSampler, or {_FIX}'
        raise LocalLearningError(
            f'train_dataloader.sampler.type={type(sampler).__name__} gives each process a part of '
            f'the images, and modules train on all: {fix}'
        )


class _Empty:
    """Stands for a dataloader where another process reads the batches: so many, without content.

    Args:
        dataloader: Not iterated over.
    """

    def __init__(self, dataloader: Any):
        self._dataloader = dataloader

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[None]:
        return iter([None] * len(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_dataloader'], name)


def _dataloader_of(runner) -> Any:
    return getattr(getattr(runner, 'train_loop', None), 'dataloader', None)


def begin_module_parallel(runner) -> None:
    """Before training: free what other processes need, and read data where it is used.

    Args:
        runner: MMEngine's runner.
    """
    runner.model.drop_foreign_state(runner.optim_wrapper)
    loop = getattr(runner, 'train_loop', None)
    if isinstance(loop, EpochBasedTrainLoop) and not runner.model.reads_data:
        loop.dataloader = _Empty(loop.dataloader)
