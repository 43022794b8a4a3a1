"""Networks, ways to train them, and training steps that are ready to be measured."""

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, Iterator, Optional, Tuple

import torch
from mmengine.config import Config
from real_size_memory import COCO, RETINANET, WAYS, WORKS

from fba_mm import localize
from fba_mm.analysis import TrainingStep, measure_step
from fba_mm.analysis.memory import storages_of, tensors_in
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import (
    backbone_of,
    from_scratch,
    in_mixed_precision,
    trains_locally,
)
from fba_mm.analysis.synthetic_batch import Shape, synthetic_batch
from fba_mm.config import load_config

MIB = 2**20
# Beside the networks whose memory is documented, the depths that step times are compared over.
_WORKS = dict(WORKS, retinanet_r101=(RETINANET, COCO, dict(depth=101)))
SMALL = {
    'small_retinanet': (RETINANET, (2, 3, 64, 64)),
    'small_resnet': ('mmpretrain::resnet/resnet18_8xb32_in1k.py', (4, 3, 32, 32)),
}
# Name → function from a stock config to one that trains this way, or to None.
CONFIGURE: Dict[str, Callable[[Config], Optional[Config]]] = {
    **{name: configure for name, (_, configure) in WAYS.items()},
    'local_blocks': partial(localize, num_modules='blocks'),
}
# Forward pass compiled as one graph, which keeps this share of what the backward pass needs.
BUDGETS = {'compiled': 1.0, 'compiled, budget 0.5': 0.5}


def network(name: str) -> Tuple[Config, Shape]:
    """The stock config of a network, loading no weights, and its batch.

    Args:
        name: A key of :data:`real_size_memory.WORKS` or of :data:`SMALL`.
    """
    if name in SMALL:
        path, shape = SMALL[name]
        return from_scratch(_narrow(load_config(path))), shape
    path, shape, settings = _WORKS[name]
    cfg = load_config(path)
    backbone_of(cfg).update(settings)
    return from_scratch(cfg), shape


def _narrow(cfg: Config) -> Config:
    """With few layers and channels, for trying the rows out."""
    cfg.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    if 'bbox_head' in cfg.model:
        cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        cfg.model.bbox_head.update(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    else:
        cfg.model.head.update(in_channels=64, num_classes=3, topk=(1,))
        cfg.model.pop('data_preprocessor', None)
        cfg.data_preprocessor.num_classes = 3
    return cfg


@dataclass
class Ready:
    """A training step and its batch.

    Attributes:
        step: The step.
        batch: What it trains on, on the step's device.
    """

    step: TrainingStep
    batch: dict

    def __call__(self) -> None:
        """Train on the batch once."""
        self.step(self.batch)

    def forget(self) -> None:
        """Leave nothing behind of a step that broke off."""
        self.step.optim_wrapper.zero_grad()


def ready(
    cfg: Config, way: str, shape: Shape, device: str, dtype: str = 'float32'
) -> Optional[Ready]:
    """A training step, before it ran for the first time; None where the way doesn't apply.

    Args:
        cfg: A stock config.
        way: A key of :data:`CONFIGURE` or of :data:`BUDGETS`.
        shape: Of the batch.
        device: Where to train.
        dtype: ``'float32'``, or that of autocast.
    """
    torch.manual_seed(0)
    with quiet():
        changed = cfg if way in BUDGETS else CONFIGURE[way](cfg)
        if changed is None:
            return None
        if dtype != 'float32':
            changed = in_mixed_precision(changed, dtype)
            if not trains_locally(changed) and changed.optim_wrapper.get('apply') is None:
                changed.optim_wrapper.apply = 'end'  # As MMEngine's own does.
        step = TrainingStep(changed, device)
        step.model.init_weights()
        if way in BUDGETS:
            backend = 'inductor' if device == 'cuda' else 'aot_eager_decomp_partition'
            step.model.backbone.compile(backend=backend, dynamic=False)
        return Ready(step, synthetic_batch(step.model, shape))


@contextmanager
def activation_budget(way: str) -> Iterator[None]:
    """Within this context, torch's compiler keeps the share of the activations that a way has.

    Args:
        way: A key of :data:`BUDGETS`; others change nothing.
    """
    if way not in BUDGETS:
        yield
        return
    import torch._functorch.config as functorch

    torch._dynamo.reset()
    before, functorch.activation_memory_budget = (
        functorch.activation_memory_budget,
        BUDGETS[way],
    )
    try:
        yield
    finally:
        functorch.activation_memory_budget = before


def all_bytes(run: Ready, device: str) -> int:
    """The most bytes at once in a step, parameters and optimizer state included.

    On CUDA the allocator's, without the batch as it comes from the dataloader, which predictions
    leave out too. On the CPU those of tensors.

    Args:
        run: A step that has run before.
        device: Where it computes.
    """
    found = measure_step(run, device)
    if device == 'cpu':
        return found.peak_bytes + sum(map(bytes_of, _kept(run.step)))
    return found.peak_bytes + found.baseline - sum(map(bytes_of, run.batch['inputs']))


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's memory, of what it is a view of, or of what is here of it."""
    return sum(storage.nbytes() for storage in storages_of(tensor))


def _kept(step: TrainingStep) -> list:
    optimizer = step.optim_wrapper.optimizer
    parts = [p for group in optimizer.param_groups for p in group['params']]
    states = [value for state in optimizer.state.values() for value in state.values()]
    every = [*step.model.parameters(), *step.model.buffers(), *parts, *tensors_in(states)]
    return list({id(tensor): tensor for tensor in every}.values())


def free(device: str) -> None:
    """Give the device's memory back, so that the next measurement starts from nothing.

    Args:
        device: Whose.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def attempt(run: Callable[[], object], device: str) -> object:
    """What a function returns; if memory runs out or it fails, a dict that says so as ``error``.

    Args:
        run: The function.
        device: Where it computes: freed afterwards if it fails.
    """
    try:
        return run()
    except Exception as error:
        if 'CUDA error' in str(error):
            raise
        message = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        found = dict(error='out of memory' if is_out_of_memory(error) else message)
    free(device)
    return found
