"""``LocalModuleParallel``: modules in several processes, each at work on a batch of its own."""

import inspect
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from ..arguments import check_count
from ..errors import LocalLearningError
from ..local import LocalBackbone, find_local_backbone, local_backbones
from ..local.local_backbone import WITHOUT_HOOK
from ..local.partition.balance import smallest_maximum
from ..local.stage_state import StageState
from .data_parallel import BROADCAST_BYTES
from .message_channel import MessageChannel
from .placement import OpenStep, PlacedModel, Placement
from .undivided_samplers import UNDIVIDED

# What layers and losses call that take means over processes.
_COLLECTIVES = ('reduce_mean(', 'all_reduce(', 'all_gather(')
_FIX = "set model_wrapper_cfg.type='LocalDataParallel'"


class ModuleParallel(Placement):
    """Some of the modules in each process, and all images.

    Args:
        model: The model, the same in all processes.
        modules_per_process: See :class:`LocalModuleParallel`.

    Attributes:
        spans: The modules of each process, from the first module on; process 0 has the last.
    """

    divides_images = False
    is_whole = False

    def __init__(self, model: nn.Module, modules_per_process: Optional[Sequence[int]] = None):
        super().__init__(model)
        self._backbone = find_local_backbone(model, 'LocalModuleParallel')
        (self._name,) = local_backbones(model)
        _check_untied(model, self._backbone)
        count, rank = get_world_size(), get_rank()
        # By stage; stage s is process count - 1 - s.
        self.spans = _spans(self._backbone, count, modules_per_process)
        self.modules_here = self.spans[count - 1 - rank]
        self._ranks = self._rank_by_name()
        self._check_parameters()
        self._foreign = [
            (name, p) for name, p in model.named_parameters() if self._ranks[name] != rank
        ]
        device = next(model.parameters()).device
        self._before = MessageChannel(rank + 1, device) if rank + 1 < count else None
        self._after = MessageChannel(rank - 1, device) if rank else None
        self._rank = rank
        self._open_step: Optional[OpenStep] = None
        self._broadcast(model, [0])

    @property
    def reads_data(self) -> bool:
        """Whether this process has the first module, and with it the batches."""
        return self._before is None

    @property
    def has_last_module(self) -> bool:
        """Whether this process has the last module, and with it the model's own neck and head."""
        return self._after is None

    def describe(self) -> str:
        """A line that says which modules are where."""
        last = len(self.spans) - 1
        return 'Module parallel: ' + ', '.join(
            f'module{"s" if len(span) > 1 else ""} '
            f'{"-".join(str(k + 1) for k in sorted({span[0], span[-1]}))} in process {last - s}'
            for s, span in enumerate(self.spans)
        )

    def check(self, runner: Runner, scope: str) -> None:
        """Refuse, before training, what can't be the same as in one process.

        Args:
            runner: See :class:`Placement`.
            scope: Of the feature bank.

        Raises:
            LocalLearningError: Says what is wrong and how to fix it.
        """
        wrapper = runner.optim_wrapper
        if scope == 'all':
            raise LocalLearningError(
                "the extra pass of FBAHook's scope='all' runs through the modules of all "
                f"processes: set scope='past', or {_FIX}"
            )
        if wrapper.clip_grad_kwargs and wrapper.apply == 'end':
            raise LocalLearningError(
                "optim_wrapper.clip_grad with apply='end' takes the norm over the modules of all "
                "processes: set optim_wrapper.apply='eager', which clips each module by its own, "
                'or leave clip_grad out'
            )
        if not wrapper.by_parameter:
            kind = type(wrapper.optimizer).__name__
            raise LocalLearningError(
                f'{kind} may look at all gradients at once, as LAMB does, and each process has '
                "those of its modules: take one of torch's optimizers, or, where it treats each "
                "parameter by itself, set optim_wrapper.apply='eager'"
            )
        if wrapper.scales_losses:
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
            fix = next(
                (new.__name__ for old, new in UNDIVIDED.items() if type(sampler) is old), None
            )
            fix = f'set it to {fix!r}' if fix else f'take UndividedSampler, or {_FIX}'
            raise LocalLearningError(
                f'train_dataloader.sampler.type={type(sampler).__name__} gives each process a part '
                f'of the images, and modules train on all: {fix}'
            )

    def attach(self, optim_wrapper: OptimWrapper, open_step: Optional[OpenStep] = None) -> None:
        """Get ready to train.

        Args:
            optim_wrapper: See :class:`Placement`.
            open_step: The same.
        """
        self._open_step = open_step

    def begin(self, runner: Runner) -> None:
        """Free what other processes need, and read data where it is used.

        Args:
            runner: See :class:`Placement`.
        """
        self._drop_foreign_state(runner.optim_wrapper)
        loop = getattr(runner, 'train_loop', None)
        if isinstance(loop, EpochBasedTrainLoop) and not self.reads_data:
            loop.dataloader = _Empty(loop.dataloader)

    @contextmanager
    def receiving(self, data: Any) -> Iterator[Any]:
        """Within this context, the modules here go on from where those before have come to.

        Args:
            data: The batch, preprocessed, where :attr:`reads_data`.

        Yields:
            The batch, preprocessed.
        """
        if not self.reads_data:
            data, self.received = self._before.receive()
        try:
            yield data
        finally:
            self.received = None

    def run_modules(self, data: dict) -> Tuple[StageState, Dict[str, Tensor]]:
        """Train the modules of a process without the last one, and so without the model's loss.

        Args:
            data: The batch, preprocessed, with its ``inputs`` and ``data_samples``.

        Returns:
            What goes to the next process, and this process's part of the log.
        """
        if self._open_step is None:
            raise LocalLearningError(WITHOUT_HOOK)
        with self._open_step(data['inputs'], data['data_samples']) as step:
            if not isinstance(step.images, Tensor):
                raise LocalLearningError(
                    f"{type(self.model).__name__}'s loss joins views of its images, and modules in "
                    f'other processes run without it: {_FIX}'
                )
            state = self._backbone.train_modules(step.images, step)
            own = [f'local_{k + 1}.loss' for k in self.modules_here]
            # Modules that are frozen have none.
            return state, {name: step.log[name] for name in own if name in step.log}

    def send(self, data: dict, state: StageState) -> None:
        """Hand a batch over, without waiting; the next one is computed meanwhile.

        Args:
            data: The batch, preprocessed.
            state: From :meth:`run_modules`.
        """
        self._after.send((data, state))

    def gather_weights(self, averages: Iterable[nn.Module] = ()) -> None:
        """Give all processes all weights and buffers, from the process that trains each.

        Waits until all processes have come here, with all batches before.

        Args:
            averages: Of these, too, each process has brought its own modules' part up to date.
        """
        self._flush()
        for model in (self.model, *averages):
            self._broadcast(model, range(len(self.spans)))

    @contextmanager
    def whole_model(
        self, optim_wrapper: OptimWrapper, averages: Iterable[nn.Module] = ()
    ) -> Iterator[None]:
        """All have all weights; within this context, process 0 has the whole optimizer's state.

        Args:
            optim_wrapper: Of this process.
            averages: See :meth:`gather_weights`.
        """
        self.gather_weights(averages)
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
            self._drop_foreign_state(optim_wrapper)

    def _drop_foreign_state(self, optim_wrapper: OptimWrapper) -> None:
        """Free what the optimizer holds for other processes' modules, from a checkpoint say."""
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
                dist._broadcast_coalesced(dist.group.WORLD, own, BROADCAST_BYTES, rank)

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
        for name, _ in (*self.model.named_parameters(), *self.model.named_buffers()):
            # The model's own neck and head, and what no segment knows, are with the last module.
            ranks[name] = next(
                (rank for prefix, rank in prefixes if f'{name}.'.startswith(f'{prefix}.')), 0
            )
        return ranks

    def _check_parameters(self) -> None:
        names = {p: name for name, p in self.model.named_parameters()}
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

    def check_gradients(self) -> None:
        """Refuse gradients for other processes' parameters: they would be lost."""
        for name, parameter in self._foreign:
            if parameter.grad is not None:
                raise LocalLearningError(
                    f'{name} gets a gradient in process {self._rank}, and is trained in process '
                    f'{self._ranks[name]}: give modules heads of their own, or {_FIX}'
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


@MODEL_WRAPPERS.register_module()
class LocalModuleParallel(PlacedModel):
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

    placement: ModuleParallel

    def __init__(self, module: nn.Module, modules_per_process: Optional[Sequence[int]] = None):
        super().__init__(module)
        self.placement = ModuleParallel(module, modules_per_process)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> Dict[str, Tensor]:
        """One training iteration of this process's modules.

        Args:
            data: The batch, as the dataloader gives it; looked at where the first module is.
            optim_wrapper: A :class:`LocalOptimWrapper`.

        Returns:
            In process 0 the model's log variables, elsewhere the sum of this process's losses as
            ``'loss'``.
        """
        model, placement = self.module, self.placement
        with optim_wrapper.optim_context(model):
            if placement.reads_data:
                data = model.data_preprocessor(data, True)
            with placement.receiving(data) as data:
                if placement.has_last_module:
                    losses = model._run_forward(data, mode='loss')
                else:
                    state, own = placement.run_modules(data)
                    placement.send(data, state)
        placement.check_gradients()
        if not placement.has_last_module:
            optim_wrapper.update_without_loss()
            return dict(loss=sum(own.values()))
        loss, log_vars = model.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log_vars
