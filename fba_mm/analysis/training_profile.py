"""Memory and time of a training step in several ways to train."""

import logging
import statistics
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..engine.fba_hook import check_local_training
from ..errors import LocalLearningError
from ..local import LocalBackbone, local_backbones
from ..preflight.building import readable_errors
from .memory import StepMemory, measure_step
from .peak_split import PeakSplit, resident_bytes
from .step_phases import marked_phases, module_peaks
from .synthetic_batch import Shape, synthetic_batch
from .training_step import TrainingStep

MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """One way to train, to be measured.

    Attributes:
        name: For tables and legends.
        kind: ``'local'`` or that of a baseline.
        cfg: The config of this way; it loads no weights.
        num_modules: K of local learning.
    """

    name: str
    kind: str
    cfg: Config
    num_modules: Any = None

    def build(self, device: str = 'cpu') -> TrainingStep:
        """Build model and optimizer, from scratch.

        Args:
            device: Where to train.

        Raises:
            LocalLearningError: They can't be built.
        """
        with readable_errors(f'{self.name}: the model cannot be built'):
            return TrainingStep(self.cfg, device)

    def run(self, step: TrainingStep, batch: dict) -> Any:
        """Do what this way does with one batch.

        Args:
            step: From :meth:`build`.
            batch: From :func:`synthetic_batch`.
        """
        return step.loss_without_gradients(batch) if self.kind == 'forward' else step(batch)


@dataclass
class VariantProfile:
    """What one way to train costs.

    Attributes:
        name: For tables and legends.
        kind: ``'local'`` or that of a baseline.
        memory: The step's memory; its ``peak_bytes`` is that of live tensors above parameters,
            buffers and optimizer state, and is the figure to compare.
        at_peak: What the peak consists of, bytes by role. On CUDA ``allocator`` is
            the difference between the allocator's peak and that of live tensors in another step:
            rounding and workspaces of ops, less what autograd adds while tensors are followed.
        resident: What lies below the peak all the time, bytes by role.
        modules: ``(what a local module consists of, the peak while it runs)``, in order.
        seconds: How long each timed step took.
        num_modules: K of local learning.
    """

    name: str
    kind: str
    memory: StepMemory
    at_peak: Dict[str, int]
    resident: Dict[str, int]
    modules: list = field(default_factory=list)
    seconds: List[float] = field(default_factory=list)
    num_modules: Any = None

    @property
    def is_exact(self) -> bool:
        """Whether losses and gradients are those of back-propagation."""
        return self.kind != 'local' or self.num_modules == 1

    @property
    def total(self) -> int:
        """Bytes of the peak, with parameters and optimizer state."""
        return self.memory.peak_bytes + sum(self.resident.values())

    @property
    def median_seconds(self) -> Optional[float]:
        """The median of ``seconds``; None if nothing was timed."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def peak_phase(self) -> str:
        """The part of the step in which the peak is reached."""
        return next(
            (name for name, peak in self.memory.phases if peak == self.memory.peak_bytes), ''
        )


def profile_training(
    variants: Sequence[Variant],
    shape: Shape,
    device: str = 'cpu',
    rounds: int = 3,
    report: Callable[[str], None] = print,
) -> List[VariantProfile]:
    """Run training steps of several ways to train on one synthetic batch.

    Memory is that of the second step: the first makes what stays, such as the optimizer's state.
    For timing the ways to train take turns, so that what else the machine does meets all alike.

    Args:
        variants: What to measure, from :func:`fba_mm.planning.baselines.baselines` say.
        shape: The batch, (images, channels, height, width).
        device: ``'cpu'`` or ``'cuda'``.
        rounds: Timed steps of each; 0 measures memory alone.
        report: Called with a line of progress for each way, with how long the timed rounds will
            take, and for ways that this model can't be trained in: accumulation is exact for few.

    Returns:
        One profile for each way that the model can be trained in.

    Raises:
        LocalLearningError: The config can't be trained, on this device, or on such a batch.

    Example:
        >>> cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
        >>> local, bp = profile_training(baselines(cfg, 2, ['bp']), (2, 3, 128, 128), rounds=0)
        local, K=4: ... MiB, its first step ... s (1 of 2)
        BP: ... MiB, its first step ... s (2 of 2)
        >>> round(local.memory.peak_bytes / bp.memory.peak_bytes, 1)
        0.3
    """
    check_device(device)
    profiles, ready, round_seconds = [], [], 0.0
    with _quiet():
        for number, variant in enumerate(variants, 1):
            try:
                step, batch, seconds = _ready(variant, shape, device)
            except LocalLearningError as error:
                if variant.kind != 'accumulation':
                    raise
                report(f'{variant.name}: left out ({error})')
                continue
            profile = _measure(variant, step, batch, device)
            profiles.append(profile)
            report(
                f'{variant.name}: {profile.memory.peak_bytes / MIB:.1f} MiB, its first step '
                f'{seconds:.1f} s ({number} of {len(variants)})'
            )
            round_seconds += seconds
            if rounds:
                ready.append(partial(variant.run, step, batch))
            del step
        for number in range(rounds):
            left = (rounds - number) * round_seconds
            report(f'timing, round {number + 1} of {rounds}: about {left:.0f} s left')
            start = time.perf_counter()
            for profile, run in zip(profiles, ready):
                profile.seconds.append(seconds_of(run, device))
            round_seconds = time.perf_counter() - start
    return profiles


def _ready(variant: Variant, shape: Shape, device: str) -> Tuple[TrainingStep, dict, float]:
    """A step that has been made once, its batch, and the seconds that it took."""
    torch.manual_seed(0)
    step = variant.build(device)
    with readable_errors(f'{variant.name}: the model cannot be initialized'):
        step.model.init_weights()
    batch = synthetic_batch(step.model, shape)
    with readable_errors(
        f'{variant.name}: the model does not train on a batch of {"×".join(map(str, shape))}',
        'give another shape, or check the config',
    ):
        if step.hooks:
            check_local_training(step.model, type(step.optim_wrapper), step.hooks[0].bank.scope)
        seconds = seconds_of(partial(variant.run, step, batch), device)
    return step, batch, seconds


def check_device(device: str) -> None:
    """Refuse a device that isn't there or can't be measured.

    Args:
        device: As torch names it.

    Raises:
        LocalLearningError: Names what is possible.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ''
    if kind not in ('cpu', 'cuda'):
        raise LocalLearningError(f"device {device!r}: give 'cpu' or 'cuda'")
    if kind == 'cuda' and not torch.cuda.is_available():
        raise LocalLearningError(
            f"device {device!r}: torch sees no CUDA device here, profile with 'cpu'"
        )
    if kind == 'cuda' and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise LocalLearningError(
            f'device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here, count '
            'them from 0'
        )


def _measure(variant: Variant, step: TrainingStep, batch: dict, device: str) -> VariantProfile:
    local = next(iter(local_backbones(step.model).values()), None)
    auxiliary = [] if local is None else [local.auxiliary]
    optimizer = step.optim_wrapper.optimizer
    split = PeakSplit(step.model, optimizer, auxiliary, lambda: _banked(step, local))
    with marked_phases(step.model, step.optim_wrapper):
        memory = measure_step(lambda: variant.run(step, batch), device, tracker=split)
    if torch.device(device).type == 'cuda':
        # The allocator is asked without a tracker, which would change what it has to do.
        with split:
            variant.run(step, batch)
    at_peak = split.split()
    if torch.device(device).type == 'cuda':
        at_peak['allocator'] = memory.peak_bytes - sum(at_peak.values())
    modules = list(zip(_module_names(local), module_peaks(memory.phases)))
    return VariantProfile(
        variant.name,
        variant.kind,
        memory,
        at_peak,
        resident_bytes(step.model, optimizer, auxiliary),
        modules,
        num_modules=variant.num_modules,
    )


def _banked(step: TrainingStep, local: Optional[LocalBackbone]) -> List[Tensor]:
    """The maps that the feature banks hold now."""
    if local is None:
        return []
    levels = [
        name
        for segment in local.segments
        for name in (segment.level, segment.keeps)
        if name is not None
    ]
    found = (hook.bank.get(level) for hook in step.hooks for level in levels)
    return [tensor for tensor in found if tensor is not None]


def _module_names(local: Optional[nn.Module]) -> List[str]:
    """The segments of each local module, as ``'layer1.0 ... layer2.3'``."""
    if local is None or local.num_modules == 1:
        return []
    names = [[local.segments[i].name for i in module] for module in local.module_segments]
    return [one[0] if len(one) == 1 else f'{one[0]} ... {one[-1]}' for one in names]


def seconds_of(run: Callable[[], object], device: str) -> float:
    """How long something takes, with all that it leaves a GPU to do.

    Args:
        run: What is timed.
        device: Where it computes.
    """
    if torch.device(device).type == 'cuda':
        # The device's own clock, between what it did before and what it does after.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Of this device: the current one, which an event would take, may be another.
        stream = torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def seconds_by_turns(
    steps: Dict[str, Callable[[], object]], device: str, rounds: int
) -> Dict[str, float]:
    """The median time of each of several steps, all of them once in every round.

    What else a machine does then slows down all of them alike.

    Args:
        steps: By name.
        device: Where they compute.
        rounds: How often each is timed.
    """
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds_of(step, device))
    return {name: statistics.median(found) for name, found in times.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a log line for each parameter, and a warning that OpenMMLab's backbones deserve."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='torch.utils.checkpoint: the use_reentrant')
            yield
    finally:
        logger.setLevel(level)
