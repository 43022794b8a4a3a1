"""How many modules it takes for a training step to fit a memory budget, without training.

A config's own training step runs on tensors that have shapes but no memory (see
:mod:`fba_mm.analysis.simulated_step`), and :class:`StorageTracker` counts what they would take.
"""

import copy
import gc
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Optional, Set, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from torch import nn
from torch.optim import Optimizer

from ..compat import MissingOpError
from ..config import config_scope, type_name
from ..errors import LocalLearningError
from ..local.partition import cut, trace_footprints, unroll
from ..memory_budget import check_budget, parse_memory
from ..preflight.building import readable_errors
from ..tasks import backbone_key
from .memory import StorageTracker
from .operations import OPERATIONS_PER_BYTE, OperationCounter, few_slices
from .peak_split import resident_bytes
from .simulated_step import SimulatedStep, quiet, without_memory
from .step_configs import backbone_of, from_scratch, trains_locally
from .synthetic_batch import Shape, batch_shape

MIB = 2**20
# gc.get_freeze_count() can't tell: Python 3.12 starts with some objects frozen.
_only_young = False

NO_FIT = (
    'take smaller images or a smaller train_dataloader.batch_size, give the modules lighter '
    'heads (--auxiliary light), set with_cp=True in the wrapped backbone, or train in mixed '
    'precision (--amp)'
)


@dataclass(frozen=True)
class MemoryPrediction:
    """What the tensors of a training step take.

    Attributes:
        num_modules: K, or ``'blocks'``; None for a config without local learning.
        parameters: Bytes of parameters and buffers, auxiliary networks included.
        optimizer_state: Bytes of the optimizer's state, theirs included.
        peak: The most bytes that are alive at once in a step, above these two.
        guessed_loss: Whether the loss could not be simulated, so that only the heads' outputs and
            their gradients are counted of it.
        averaged: Bytes of the copy of the model that EMAHook keeps.
        flops: Floating-point operations of the step's matrix products and convolutions.
        bytes_moved: Bytes that its ops read and write.
    """

    num_modules: Optional[Union[int, str]]
    parameters: int
    optimizer_state: int
    peak: int
    guessed_loss: bool = False
    averaged: int = 0
    flops: int = 0
    bytes_moved: int = 0

    @property
    def resident(self) -> int:
        """Bytes that are there between steps, too."""
        return self.parameters + self.optimizer_state + self.averaged

    @property
    def total(self) -> int:
        """What has to fit."""
        return self.resident + self.peak

    @property
    def operations(self) -> float:
        """What the step computes, memory traffic included: proportional to its time."""
        device = 'cuda' if get_device() == 'cuda' else 'cpu'
        return self.flops + OPERATIONS_PER_BYTE[device] * self.bytes_moved


def predict_memory(cfg: Config, shape: Shape) -> MemoryPrediction:
    """Predict the memory of a training step, without computing anything or taking memory for it.

    Counted are the tensors of the second step, as :func:`measure_step` counts them on the CPU: the
    step of the config's model with its own losses, FBAHook and optimizer wrapper. Not counted are
    what ops use internally, CUDA's context and the allocator's fragmentation, the batch before it
    is preprocessed, and what other hooks keep, but for EMAHook's copy of the model. mmcv's ops
    count as those of torchvision and torch. Targets are those of 8 objects per image, and samplers
    of two-stage detectors find as many proposals on objects as they ask for
    (:func:`trained_proposals`).

    Args:
        cfg: A training config, stock or local. It is not changed, and no weights are loaded.
        shape: The batch, (images, channels, height, width).

    Returns:
        The prediction.

    Raises:
        LocalLearningError: The config can't be trained, or its step can't be simulated.

    Example:
        >>> cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
        >>> round(predict_memory(cfg, (2, 3, 800, 1333)).total / 2**30, 2)
        1.16
    """
    num_modules = None
    if trains_locally(cfg):
        num_modules = backbone_of(cfg).get('num_modules', 4)
    cfg, steps = _as_simulated(cfg)
    first: Optional[Exception] = None
    for guess_loss in (False, True):
        try:
            with quiet(), young_garbage():
                found = _simulate(cfg, shape, guess_loss, steps)
            return replace(found, num_modules=num_modules)
        except Exception as error:  # A model is anybody's code.
            if isinstance(error, LocalLearningError) and not isinstance(error, MissingOpError):
                raise
            first = first or error
    reason = ' '.join(str(first).split())[:200] or 'no reason given'
    fix = 'check the config and the shape'
    if num_modules is not None:
        fix = 'give num_modules a number, or check the shape'
    raise LocalLearningError(
        f'the training step on a batch of {"×".join(map(str, shape))} cannot be simulated '
        f'({type(first).__name__}: {reason}): {fix}'
    ) from first


@contextmanager
def young_garbage() -> Iterator[None]:
    """Within this context, garbage is looked for in what was made in it alone.

    A simulation collects garbage first. Where all of the more than a million objects of torch and
    mmdet are looked at, that takes as long as the simulation of a small model.
    """
    global _only_young
    if _only_young:
        yield
        return
    _only_young = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _only_young = False


def _as_simulated(cfg: Config) -> Tuple[Config, int]:
    """The config to simulate, and after how many steps gradients are applied in it."""
    if not cfg.get('optim_wrapper'):
        raise LocalLearningError('the config has no optim_wrapper: give a complete training config')
    cfg = from_scratch(cfg)
    wrapper = cfg.optim_wrapper
    if 'Amp' in type_name(wrapper.get('type')):
        # It is MMEngine's with CPU support, and without local losses does the same.
        wrapper.type = 'AmpLocalOptimWrapper'
        if torch.cuda.is_available():
            wrapper.setdefault('dtype', 'float16')
    # The second of two steps meets the gradients of the first, as all others would.
    steps = min(wrapper.get('accumulative_counts') or 1, 2)
    wrapper.accumulative_counts = steps
    return cfg, steps


def _simulate(cfg: Config, shape: Shape, guess_loss: bool, steps: int) -> MemoryPrediction:
    with readable_errors('the model or its optimizer cannot be built'):
        step = SimulatedStep(cfg, shape, guess_loss)
    optimizer = step.optim_wrapper.optimizer
    tracker, counter = StorageTracker(), OperationCounter()
    with step.running():
        batch = step.batch()
        _make_state(optimizer)
        # Garbage that happens to be collected later would blur the account.
        gc.collect()
        sizes = resident_bytes(step.model, optimizer)
        tracker.watch(step.model, optimizer)
        # The tracker looks at who called it, so that no other mode may stand between.
        with few_slices(counter), counter, _trained(optimizer) as trained, tracker:
            for _ in range(steps):
                step(batch)
        peak = tracker.peak - sizes['parameters'] - sizes['optimizer_state']
        for parameter in set(optimizer.state) - trained:
            del optimizer.state[parameter]
        sizes = resident_bytes(step.model, optimizer)
    averaged = any(
        'EMAHook' in type_name(hook.get('type')) for hook in cfg.get('custom_hooks') or []
    )
    return MemoryPrediction(
        None,
        sizes['parameters'],
        sizes['optimizer_state'],
        peak,
        guess_loss,
        sizes['parameters'] if averaged else 0,
        counter.flops // steps,
        counter.bytes_moved // steps,
    )


def _make_state(optimizer: Optimizer) -> None:
    """Make the state that an optimizer would have after a step, instead of simulating one."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _trained(optimizer: Optimizer) -> Iterator[Set[nn.Parameter]]:
    """The parameters that get a gradient within this context: others have no optimizer state."""
    trained: Set[nn.Parameter] = set()
    with ExitStack() as stack:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(trained.add)
                    stack.callback(handle.remove)
        yield trained


def fit_modules(
    cfg: Config,
    memory_budget: Union[str, int, float],
    shape: Optional[Shape] = None,
    report: Callable[[str], None] = print,
) -> Config:
    """Take the fewest modules with which a training step fits a memory budget.

    Fewer modules train more alike to back-propagation and cost less time. Tried are 1, 2, 3, 4, 6,
    8, 12, 16, ... and ``'blocks'``, each by :func:`predict_memory`.

    Args:
        cfg: A local-learning config. It is not changed; its ``num_modules`` doesn't count.
        memory_budget: What the tensors of a training step may take, parameters and optimizer state
            included: ``'8GB'``, ``'10GiB'``, or bytes. CUDA's context, fragmentation and the
            workspaces of ops come on top: leave them room.
        shape: The batch, (images, channels, height, width); unset, that of the config's train
            pipeline.
        report: Called with a line for each number that is tried.

    Returns:
        A new config with the number in ``num_modules`` of ``model.backbone`` or
        ``model.generator``.

    Raises:
        LocalLearningError: None fits; the config isn't a local one or can't be simulated; or the
            budget is none.

    Example:
        >>> cfg = localize('fba_mm::demo/retinanet_r34_digits.py', num_modules=1)
        >>> fit_modules(cfg, '50MB').model.backbone.num_modules
        Modules that fit memory_budget=50MB (47.7 MiB) ...
        2
    """
    budget = parse_memory(memory_budget)
    if not trains_locally(cfg):
        raise LocalLearningError(
            f'model.{backbone_key(cfg.model)} is no LocalBackbone, there is no number of modules '
            'to find: make the config local with fba_mm.localize'
        )
    shape = batch_shape(cfg) if shape is None else shape
    cfg = copy.deepcopy(cfg)
    local_backbone = backbone_of(cfg)
    local_backbone.pop('memory_budget', None)
    report(
        f'Modules that fit memory_budget={memory_budget} ({in_mib(budget)}) with batches of '
        f'{"×".join(map(str, shape))}, tensors of a training step alone (what CUDA and its '
        'allocator take comes on top):'
    )
    least: Optional[MemoryPrediction] = None
    for num_modules in _candidates(cfg):
        local_backbone.num_modules = num_modules
        found = predict_memory(cfg, shape)
        fits = found.total <= budget
        report(
            f'num_modules={num_modules!r}: {in_mib(found.total)}, of which '
            f'{in_mib(found.resident)} parameters and optimizer state'
            f'{", without what the loss keeps" if found.guessed_loss else ""}: '
            f'{"fits" if fits else "does not fit"}'
        )
        if fits:
            if num_modules == 1:
                report('K = 1 is plain back-propagation: you need no local learning here.')
            return cfg
        if least is None or found.total < least.total:
            least = found
        if found.resident > budget:
            break  # More modules have more parameters.
    assert least is not None
    raise LocalLearningError(
        f'memory_budget={memory_budget} ({in_mib(budget)}) is less than any number of modules '
        f'takes on batches of {"×".join(map(str, shape))}: the least is {in_mib(least.total)}, '
        f'with num_modules={least.num_modules!r} ({in_mib(least.resident)} of it parameters and '
        f'optimizer state): {NO_FIT}'
    )


def resolve_num_modules(
    cfg: Config, shape: Optional[Shape] = None, report: Callable[[str], None] = print
) -> Config:
    """Fill in the number of modules where a config says ``'auto'``.

    Args:
        cfg: Any config. It is not changed.
        shape: As in :func:`fit_modules`.
        report: As in :func:`fit_modules`.

    Returns:
        The config itself if there is nothing to fill in, else a new one.

    Raises:
        LocalLearningError: As :func:`fit_modules`; or ``num_modules='auto'`` and
            ``memory_budget`` are there one without the other.

    Example:
        >>> config = 'fba_mm::demo/retinanet_r34_digits.py'
        >>> cfg = localize(config, num_modules='auto', memory_budget='50MB')
        >>> resolve_num_modules(cfg).model.backbone.num_modules
        Modules that fit memory_budget=50MB (47.7 MiB) ...
        2
    """
    model = cfg.get('model') or {}
    backbone = model.get(backbone_key(model))
    if not isinstance(backbone, dict) or type_name(backbone.get('type')) != 'LocalBackbone':
        return cfg
    memory_budget = backbone.get('memory_budget')
    if not check_budget(backbone.get('num_modules', 4), memory_budget) or memory_budget is None:
        return cfg
    return fit_modules(cfg, memory_budget, shape, report)


def _candidates(cfg: Config) -> Iterator[Union[int, str]]:
    """Numbers of modules in increasing order, as many as the backbone allows."""
    yield 1
    blocks = count_blocks(cfg)
    yield from (number for number in module_counts(blocks) if 1 < number < blocks)
    if blocks > 1:
        yield 'blocks'


def module_counts(limit: int) -> List[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... as far as ``limit``.

    Args:
        limit: Modules of the finest cut.
    """
    numbers, power = [1], 2
    while power < limit:
        numbers += [power, power * 3 // 2]
        power *= 2
    return numbers


def count_blocks(cfg: Config) -> int:
    """Modules of the finest cut.

    Args:
        cfg: A training config, stock or local.

    Raises:
        LocalLearningError: The backbone can't be built or cut.
    """
    backbone = backbone_of(from_scratch(cfg))
    if trains_locally(cfg):
        backbone = backbone.backbone
    with config_scope(cfg), readable_errors(
        'the backbone cannot be built'
    ), quiet(), without_memory():
        backbone = MODELS.build(backbone)
        unrolled = unroll(backbone)
        footprints = trace_footprints(
            backbone, unrolled.segments, unrolled.input_shape, unrolled.as_map
        )
        return len(cut(footprints, unrolled.segments, 'blocks'))


def in_mib(nbytes: int) -> str:
    """Bytes as text, in the one unit of all messages.

    Args:
        nbytes: The number.
    """
    return f'{nbytes / MIB:,.0f} MiB' if nbytes >= 100 * MIB else f'{nbytes / MIB:.1f} MiB'
