"""One training step of a config in which nothing is computed: tensors have shapes but no memory.

torch's fake tensors carry shape, dtype and device, and every op on them works out those of its
results, as on the meta device. Unlike there, a fake tensor says that it is on the CPU, so that
autocast, losses and optimizers go the ways that they go in training. What remains are the questions
that only values answer: these are guessed.
"""
import logging
import sys
import warnings
from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, List, Optional
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fba_mm.compat.mmcv_ops import without_compiled_ops
from fba_mm.compat.torch_versions import without_generator
from fba_mm.engine.fba_hook import check_local_training
from fba_mm.preflight.building import build_model

from .memory import tensors_in
from .synthetic_batch import Shape, synthetic_batch
from .training_step import TrainingStep

aten = torch.ops.aten

_FACTORIES = frozenset([
    aten.empty.memory_format, aten.full.default, aten.ones.default, aten.rand.default,
    aten.randn.default, aten.zeros.default
])
# Elements up to which tensors are real while a model is built.
_SMALL = 4096

_MASKS = (torch.bool, torch.uint8)


class _FakeTensorMode(FakeTensorMode):
    """torch's, for code that also has real tensors, such as anchors, and that copies fake ones."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __deepcopy__(self, memo: dict) -> '_FakeTensorMode':
        # A fake tensor's copy takes all its attributes along, this mode among them, whose weak
        # references to storages must not be copied: torch would free each of them twice.
        return self


class SimulatedStep(TrainingStep):
    """Builds a config's model and optimizer without memory, and goes through a training step.

    All runs that runs in training: data preprocessor, backbone, local modules with their auxiliary
    networks, heads, assignment of targets, losses, backward passes, optimizer. Guessed is what
    depends on values: of two masks that share positions out, such as objects and background, each
    gets half; a mask that only selects takes all; no gradient is infinite.

    Args:
        cfg: A complete training config, with or without local learning.
        shape: The batch, (images, channels, height, width).
        guess_loss: Put the sum of the squared outputs of each head in the place of its loss. For
            losses that leave torch, with numpy say: what they would keep themselves is missing.

    Raises:
        LocalLearningError: The config can't be trained.

    Example:
        >>> step = SimulatedStep(cfg, (2, 3, 800, 1333))
        >>> with step.running():
        ...     step(step.batch())
    """

    def __init__(self, cfg: Config, shape: Shape, guess_loss: bool = False):
        self._fake = _FakeTensorMode()
        self._shape = shape
        super().__init__(cfg)
        if self.hooks:
            check_local_training(
                self.model, type(self.optim_wrapper), self.hooks[0].bank.scope)
        if get_device() == 'cuda':
            # There, torch's optimizers take all parameters at once unless they are told otherwise,
            # with copies of them; these tensors say that they are on the CPU.
            for group in self.optim_wrapper.optimizer.param_groups:
                if 'foreach' in group and group['foreach'] is None and not group.get('fused'):
                    group['foreach'] = True
        scaler = getattr(self.optim_wrapper, 'loss_scaler', None)
        if scaler is not None:
            # Otherwise a guess would decide whether the optimizer steps.
            scaler._maybe_opt_step = lambda optimizer, *_, **__: optimizer.step()
        if guess_loss:
            _guess_losses(self.model)

    def _build_model(self, cfg: Config, device: str) -> nn.Module:
        with without_memory(self._fake):
            model = build_model(cfg)
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        tensors[name] = self._fake.from_tensor(tensor)
        return model

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context in which the step is called, and in which its tensors are looked at."""
        with without_compiled_ops(), _mask_targets_in_torch(), self._fake, _Guesses():
            yield

    def batch(self) -> dict:
        """A batch of the given shape, within :meth:`running`.

        Raises:
            LocalLearningError: The task has no synthetic batch, or the shape can't be.
        """
        return synthetic_batch(self.model, self._shape)


class without_memory(TorchDispatchMode):
    """Within this context, modules are built without memory for their parameters.

    Small tensors are real: constructors may look into them.

    Args:
        fake: What the parameters' tensors shall belong to.

    Example:
        >>> with without_memory():
        ...     backbone = MODELS.build(cfg.model.backbone)
    """

    def __init__(self, fake: Optional[FakeTensorMode] = None):
        super().__init__()
        self._fake = fake or _FakeTensorMode()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FACTORIES and torch.Size(args[0]).numel() > _SMALL:
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Guesses(TorchDispatchMode):
    """Answers what can't be known without values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = without_generator(kwargs or {})
        if func is aten._local_scalar_dense.default:
            if getattr(args[0], 'constant', None) is None and isinstance(args[0], FakeTensor):
                # "Are there any?" is asked before going on, "how many?" before dividing by it.
                return _one(args[0])
        elif func is aten.nonzero.default:
            # Heads ask for objects and for background: together they are all.
            count = -(-args[0].numel() // 2)
            return args[0].new_empty((count, args[0].dim()), dtype=torch.long)
        elif func is aten._unique2.default:
            return _unique(*args, **kwargs)
        elif str(func) == 'torchvision.nms.default':
            return args[0].new_empty(len(args[0]), dtype=torch.long)
        elif func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            return func(args[0], [part for index in args[1] for part in _positions(index)])
        return func(*args, **kwargs)


def _one(tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1. if tensor.is_floating_point() else 1


def _is_mask(index: Optional[Tensor]) -> bool:
    return index is not None and index.dtype in _MASKS


def _positions(index: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The indices that stand for a mask that selects everything."""
    if not _is_mask(index):
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.long)] * index.dim()


def _unique(tensor: Tensor, sorted: bool = True, return_inverse: bool = False,
            return_counts: bool = False) -> tuple:
    def indices(wanted: bool) -> Tensor:
        return tensor.new_empty(tensor.numel() if wanted else 0, dtype=torch.long)

    return tensor.new_empty(tensor.numel()), indices(return_inverse), indices(return_counts)


@contextmanager
def _mask_targets_in_torch() -> Iterator[None]:
    """Within this context, mmdet's targets of masks don't leave torch for numpy."""
    module = sys.modules.get('mmdet.structures.mask.mask_target')
    if module is None:
        yield
        return

    def targets(pos_proposals: Tensor, inds: Tensor, gt_masks: Any, cfg: Any) -> Tensor:
        size = cfg.mask_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return pos_proposals.new_empty((len(pos_proposals), height, width))

    with mock.patch.object(module, 'mask_target_single', targets):
        yield


def _guess_losses(model: nn.Module) -> None:
    """Let the losses of a model's heads be the sum of what the heads put out, squared."""

    def loss_by_feat(name: str, *args: Any, **kwargs: Any) -> dict:
        return {name: _squares((args, kwargs))}

    def loss_and_target(name: str, *args: Any, **kwargs: Any) -> dict:
        losses = loss_by_feat(name, *args, **kwargs)
        return dict(loss_bbox=losses, loss_mask=losses)

    for name, module in model.named_modules():
        for function in (loss_by_feat, loss_and_target):
            if hasattr(module, function.__name__):
                # Detectors gather losses by name: each head's has one of its own.
                setattr(module, function.__name__, partial(function, f'loss_{name}'))


def _squares(value: Any) -> Tensor:
    return sum(tensor.square().sum() for tensor in tensors_in(value) if tensor.requires_grad)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context, nobody is told how a model is built, again and again."""
    loggers = [MMLogger.get_current_instance(), logging.getLogger(FakeTensorMode.__module__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
