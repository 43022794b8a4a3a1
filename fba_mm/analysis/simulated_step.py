"""One training step of a config in which nothing is computed: tensors have shapes but no memory.

torch's fake tensors carry shape, dtype and device, and every op on them works out those of its
results, as on the meta device. Unlike there, a fake tensor says that it is on the CPU, so that
autocast, losses and optimizers go the ways that they go in training. What remains are the questions
that only values answer: these are guessed.
"""

import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial, wraps
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ..compat.mmcv_ops import without_compiled_ops
from ..compat.torch_versions import unset_fake_temporarily, without_generator
from ..engine.fba_hook import check_local_training
from ..preflight.building import build_model
from .memory import tensors_in
from .synthetic_batch import Shape, synthetic_batch
from .trained_proposals import with_subclasses
from .training_step import TrainingStep

aten = torch.ops.aten

_FACTORIES = frozenset(
    [
        aten.empty.memory_format,
        aten.full.default,
        aten.ones.default,
        aten.rand.default,
        aten.randn.default,
        aten.zeros.default,
    ]
)
# Elements up to which tensors are real while a model is built.
_SMALL = 4096
# Elements up to which anything is computed.
_LARGE = 2**24

_DEVICE = torch.ops.prim.device.default
_MASKS = (torch.bool, torch.uint8)
_CPU = torch.device('cpu')
# What an op is told beside tensors, as far as it is told by itself.
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
# Ops of many steps.
_REMEMBERED = 2**16


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
    depends on values of the network: proposals are those of :func:`trained_proposals`, and else all
    predictions are alike. Where that isn't enough, of two masks that share positions out, such as
    objects and background, each gets half; a mask that only selects takes all; no gradient is
    infinite.

    Args:
        cfg: A complete training config, with or without local learning.
        shape: The batch, (images, channels, height, width).
        guess_loss: Put the sum of the squared outputs of each head in the place of its loss. For
            losses that leave torch, with numpy say: what they would keep themselves is missing.

    Raises:
        LocalLearningError: The config can't be trained.

    Example:
        >>> cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> step = SimulatedStep(cfg, (2, 3, 800, 1333))
        >>> with step.running():
        ...     losses = step(step.batch())
    """

    def __init__(self, cfg: Config, shape: Shape, guess_loss: bool = False):
        self._fake = _FakeTensorMode()
        self._shape = shape
        super().__init__(cfg)
        if self.hooks:
            check_local_training(self.model, type(self.optim_wrapper), self.hooks[0].bank.scope)
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
        with without_compiled_ops(), _with_values(self._fake), self._fake, _Values(
            self._fake
        ), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
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
        >>> cfg = load_config('fba_mm::retinanet_r50_fba.py')
        >>> with without_memory():
        ...     backbone = MODELS.build(cfg.model.backbone)
    """

    def __init__(self, fake: Optional[FakeTensorMode] = None):
        super().__init__()
        self._fake = fake or _FakeTensorMode()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Tensors on the meta device have no memory anyway, and torch 2.1 runs no fake ones there.
        on_meta = kwargs.get('device') == torch.device('meta')
        if func in _FACTORIES and torch.Size(args[0]).numel() > _SMALL and not on_meta:
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Values(TorchDispatchMode):
    """Computes what has values, and guesses what can't be known without.

    Boxes, labels, anchors and all that follows from them alone are real, so that targets are as
    many as in training. The network and its outputs have shapes only: see :func:`_with_values` for
    where outputs decide something.
    """

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # Nearly every other op of theirs is this question.
        inputs = list(tensors_in((args, kwargs)))
        if any(isinstance(tensor, FakeTensor) for tensor in inputs):
            return _guessed(func, args, without_generator(kwargs), self._fake)
        numel = sum(tensor.numel() for tensor in inputs)
        if not inputs or numel > _SMALL and not func.is_view:
            try:
                result = _run(func, args, without_generator(kwargs), self._fake)
            except (DataDependentOutputException, DynamicOutputShapeException):
                result = ()
            if any(tensor.numel() > _LARGE for tensor in tensors_in(result)):
                return result
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _run(func: Any, args: tuple, kwargs: dict, fake: FakeTensorMode) -> Any:
    """Run an op with simulated tensors in the place of those that have values, such as labels.

    torch does so too, but follows each to the tensor that it is a view of. That matters only where
    the result may be one of them. Where it may not, an op that ran before on tensors of these
    shapes isn't run again: torch remembers such ops, too, and takes ten times as long to find them.
    """
    if func.is_view and all(map(_is_simulated, tensors_in((args, kwargs)))):
        with in_kernel_invocation_manager(fake):
            result = func(*args, **kwargs)
        return _simulated(result, fake)
    if _may_alias(func):
        return func(*args, **kwargs)
    try:
        key = func, _described((args, kwargs))
        remembered = _results.get(key)
    except _Unlike:
        key = remembered = None
    if remembered is None:
        args, kwargs = _without_values(args, fake), _without_values(kwargs, fake)
        result = func(*args, **kwargs)
        if key is not None and _is_new(result, (args, kwargs)):
            _remember(key, result)
        return result
    return _made(remembered, fake)


def _is_simulated(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and getattr(tensor, 'constant', None) is None


def _simulated(result: Any, fake: FakeTensorMode) -> Any:
    """What an op on the meta device has returned, as tensors that say that they are on the CPU."""
    if isinstance(result, Tensor):
        return FakeTensor(fake, result, _CPU)
    if isinstance(result, (tuple, list)):
        return type(result)(_simulated(part, fake) for part in result)
    return result


class _Unlike(Exception):
    """Something that says more than a description of it."""


# What ops have returned, by their arguments, both as shapes.
_results: Dict[tuple, Any] = {}


def _remember(key: tuple, result: Any) -> None:
    if len(_results) >= _REMEMBERED:
        _results.clear()
    with suppress(_Unlike):
        _results[key] = _described(result)


def _is_new(result: Any, inputs: Any) -> bool:
    """Whether each tensor of a result has a storage of its own, as large as a new one's."""
    made = list(tensors_in(result))
    storages = [one.untyped_storage()._cdata for one in (*made, *tensors_in(inputs))]
    return all(
        isinstance(one, FakeTensor)
        and one.untyped_storage().nbytes() == _extent(one)
        and storages.count(storage) == 1
        for one, storage in zip(made, storages)
    )


def _extent(tensor: Tensor) -> int:
    """Bytes of a new tensor of this shape and these strides."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return (1 + last) * tensor.element_size()


class _Shape(NamedTuple):
    """A tensor without its values."""

    shape: tuple
    stride: tuple
    dtype: torch.dtype


def _described(item: Any) -> Any:
    """The same with shapes in the place of tensors, hashable."""
    if isinstance(item, Tensor):
        if item.layout != torch.strided or getattr(item, 'constant', None) is not None:
            raise _Unlike
        return _Shape(tuple(item.shape), item.stride(), item.dtype)
    if isinstance(item, (tuple, list)):
        return (type(item), *map(_described, item))
    if isinstance(item, dict):
        return (dict, *((key, _described(value)) for key, value in sorted(item.items())))
    if item is None or isinstance(item, _PLAIN):
        return type(item), item  # 1, 1.0 and True are equal.
    raise _Unlike


def _made(described: Any, fake: FakeTensorMode) -> Any:
    """New tensors as described."""
    if isinstance(described, _Shape):
        return _empty(*described, fake)
    kind, *parts = described
    return kind(_made(part, fake) for part in parts) if kind in (tuple, list) else parts[0]


def _empty(shape: tuple, stride: tuple, dtype: torch.dtype, fake: FakeTensorMode) -> FakeTensor:
    with unset_fake_temporarily():
        meta = torch.empty_strided(shape, stride, dtype=dtype, device='meta')
    return FakeTensor(fake, meta, _CPU)


@lru_cache(maxsize=None)
def _may_alias(func: Any) -> bool:
    return func._schema.is_mutable or any(a.alias_info for a in func._schema.arguments)


def _without_values(item: Any, fake: FakeTensorMode) -> Any:
    if isinstance(item, Tensor):
        if isinstance(item, FakeTensor) or type(item) is not Tensor:
            return item
        return _empty(item.shape, item.stride(), item.dtype, fake)
    if isinstance(item, (tuple, list)):
        return type(item)([_without_values(part, fake) for part in item])
    if isinstance(item, dict):
        return {key: _without_values(part, fake) for key, part in item.items()}
    return item


@lru_cache(maxsize=None)
def _returns_its_first(func: Any) -> bool:
    """Whether an op writes to its first argument and returns that, shape and memory as before."""
    arguments, results = func._schema.arguments, func._schema.returns
    return (
        len(results) == 1
        and len(arguments) > 0
        and results[0].alias_info is not None
        and results[0].alias_info.is_write
        and arguments[0].alias_info is not None
        and arguments[0].alias_info.is_write
        and str(arguments[0].type) == 'Tensor'
        and torch.Tag.inplace_view not in func.tags
    )


def _guessed(func: Any, args: tuple, kwargs: dict, fake: FakeTensorMode) -> Any:
    if (
        _returns_its_first(func)
        and isinstance(args[0], FakeTensor)
        and getattr(args[0], 'constant', None) is None
    ):
        return args[0]
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
        args = (args[0], [part for index in args[1] for part in _positions(index)])
    return _run(func, args, kwargs, fake)


def _one(tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _is_mask(index: Optional[Tensor]) -> bool:
    return index is not None and index.dtype in _MASKS


def _positions(index: Optional[Tensor]) -> List[Optional[Tensor]]:
    """The indices that stand for a mask; one that isn't known selects everything."""
    if not _is_mask(index):
        return [index]
    if not isinstance(index, FakeTensor):
        with unset_fake_temporarily():
            return list(index.nonzero().unbind(1))
    return [index.new_empty(index.numel(), dtype=torch.long)] * index.dim()


def _unique(
    tensor: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple:
    def indices(wanted: bool) -> Tensor:
        return tensor.new_empty(tensor.numel() if wanted else 0, dtype=torch.long)

    return tensor.new_empty(tensor.numel()), indices(return_inverse), indices(return_counts)


@contextmanager
def _with_values(fake: FakeTensorMode) -> Iterator[None]:
    """Within this context, a detector's outputs have values where these decide something.

    An RPN's outputs decide on proposals, a cascade's stages on those of the next, and some
    assigners look at predictions. They get values as those of a network that has learned nothing:
    all scores and offsets near zero.
    """
    kinds = [
        ('mmdet.models.dense_heads.base_dense_head', 'BaseDenseHead', 'predict_by_feat'),
        ('mmdet.models.roi_heads.bbox_heads', 'BBoxHead', 'refine_bboxes'),
        ('mmdet.models.task_modules.assigners', 'BaseAssigner', 'assign'),
    ]
    with ExitStack() as stack:
        for module, name, method in kinds:
            base = getattr(sys.modules.get(module), name, None)
            for kind in with_subclasses(base) if base else ():
                if method in vars(kind):
                    stack.enter_context(
                        mock.patch.object(kind, method, _on_values(vars(kind)[method]))
                    )
        masks = sys.modules.get('mmdet.structures.mask.mask_target')
        if masks is not None:
            stack.enter_context(
                mock.patch.object(masks, 'mask_target_single', partial(_mask_targets, fake))
            )
        yield


def _on_values(method: Callable) -> Callable:

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return method(*_valued(args), **_valued(kwargs))

    return wrapped


def _valued(item: Any) -> Any:
    """The same with values in the place of simulated tensors."""
    if isinstance(item, FakeTensor):
        return _values_for(item)
    if isinstance(item, (tuple, list)):
        return type(item)(_valued(part) for part in item)
    if isinstance(item, dict):
        return type(item)({key: _valued(part) for key, part in item.items()})
    if isinstance(item, InstanceData):
        return item.new(**{key: _valued(part) for key, part in item.items()})
    return item


def _values_for(tensor: FakeTensor) -> Tensor:
    if tensor.numel() > _LARGE:
        return tensor
    # They stand for memory that is counted already.
    with _disable_current_modes():
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, dtype=tensor.dtype) * 0.01
        return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _mask_targets(
    fake: FakeTensorMode, pos_proposals: Tensor, inds: Tensor, gt_masks: Any, cfg: Any
) -> Tensor:
    """mmdet's, which leave torch for numpy, with the maps that they make meanwhile."""
    size = cfg.mask_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if not isinstance(pos_proposals, FakeTensor):
        with _disable_current_modes():
            pos_proposals = fake.from_tensor(pos_proposals)
    if len(pos_proposals) and hasattr(gt_masks, 'masks'):
        shape = (len(pos_proposals), gt_masks.height, gt_masks.width)
        pos_proposals.new_empty(shape, dtype=torch.uint8).to(pos_proposals.dtype)
    return pos_proposals.new_empty((len(pos_proposals), height, width))


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
