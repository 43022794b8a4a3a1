"""``LocalLearning``: the engine under an ordinary PyTorch loop, without an OpenMMLab runner."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union, cast

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.optim import Optimizer

from .engine import FBAHook, LocalOptimWrapper
from .engine.fba_hook import check_local_training
from .engine.loss_check import LossCheck
from .errors import LocalLearningError
from .local import LocalBackbone
from .local.auxiliary import auxiliary_class
from .local.partition import unroll

Criterion = Callable[[Any, Any], Tensor]


class LocalLearning:
    """Trains a plain PyTorch model in K gradient-isolated modules, each with a loss of its own.

    The model stays as it is: its class, its layers, its state dict, what it does in evaluation. A
    call runs it module by module, computes the gradients of all modules but the last, and returns
    the loss, whose own backward pass trains the last one. Partition, auxiliary networks, bank and
    memory are those of :class:`LocalBackbone`.

    Args:
        model: A network of a known family (torchvision's and timm's ResNets, timm's ViTs, what
            :func:`backbone_family` describes), or a model that holds one, such as torchvision's
            detectors and segmentation models.
        loss: ``loss(model(inputs), targets)``, a scalar. None for models that return a dict of
            losses in training, ``model(inputs, targets)``, as torchvision's detectors do.
        num_modules: K, see :class:`LocalBackbone`.
        auxiliary: The auxiliary networks' type, as ``'DGL'``, or their config. A classifier's
            ``num_classes`` is filled in.
        backbone: Name of the submodule that is cut; unset, the first of a known family.
        scope: What modules find in the feature bank, see :class:`FBAHook`.
        invalid_loss: What is done about a loss that is NaN or infinite. ``'stop'`` names its module
            in an error; ``'skip'`` leaves out its backward pass, and returns zeros if it is the
            model's own.
        **kwargs: ``reserve``, ``recompute`` and ``recompute_batch_size`` of :class:`LocalBackbone`.

    Attributes:
        model: The model.
        auxiliary: The auxiliary networks. A training that is to be resumed saves their state, too.
        output: What the model made of the last batch, without gradients.
        log: The modules' losses on the last batch: ``local_1.loss``, ``local_2.loss``, ...

    Raises:
        LocalLearningError: The model can't be cut, the auxiliary networks don't fit it, or, in
            training, the model is in evaluation mode or a loss is no number.

    Example:
        >>> import torchvision
        >>> loader = [(torch.rand(4, 3, 64, 64), torch.tensor([0, 3, 9, 3]))]
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> local = LocalLearning(model, nn.functional.cross_entropy, num_modules=4)
        >>> optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
        >>> for images, labels in loader:
        ...     optimizer.zero_grad()
        ...     loss = local(images, labels)
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Optional[Criterion] = None,
        num_modules: Union[int, str, list] = 4,
        auxiliary: Union[str, dict] = 'SLM',
        backbone: Optional[str] = None,
        scope: str = 'past',
        invalid_loss: str = 'stop',
        **kwargs: Any,
    ):
        recomputes = kwargs.get('recompute') is not None
        # Back-propagation needs no partition, and so no known family.
        whole = num_modules == 1 and not recomputes and backbone is None
        name = '' if whole else _find_backbone(model, backbone)
        part = model.get_submodule(name)
        scores = None if whole else unroll(part).num_scores
        config = _auxiliary_config(auxiliary, scores)
        local_backbone = LocalBackbone(part, num_modules, config, **kwargs)
        self.model = model
        self.auxiliary: ModuleList = local_backbone.auxiliary
        with _quiet():
            self.auxiliary.init_weights()
        like = next(part.parameters())
        self.auxiliary.to(like.device)
        self._task = _Task(model, name, local_backbone, loss, scores)
        check_local_training(self._task, LocalOptimWrapper, scope)
        self._hook = _LoopHook(scope, invalid_loss, local_backbone.num_modules)
        self._gradients = _Gradients(self.auxiliary)
        self._hook.attach(self._task, cast(LocalOptimWrapper, self._gradients))

    @property
    def output(self) -> Any:
        """What the model made of the last batch, without gradients."""
        return self._task.output

    @property
    def log(self) -> Dict[str, Tensor]:
        """The modules' losses on the last batch."""
        return self._hook.losses()

    def parameters(self) -> List[nn.Parameter]:
        """The model's parameters, and those of the auxiliary networks, for an optimizer."""
        return [*self.model.parameters(), *self.auxiliary.parameters()]

    def describe(self) -> str:
        """One line per module: its layers, what trains it, and its share of the activations."""
        return self._task.backbone.describe()

    def __call__(
        self,
        inputs: Any,
        targets: Any,
        optimizer: Optional[Optimizer] = None,
        scale: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> Union[Tensor, Dict[str, Tensor]]:
        """Train all modules but the last on a batch.

        Args:
            inputs: What the model takes: images, (N, C, H, W), or a detector's list of images.
            targets: What ``loss`` takes, or the model itself.
            optimizer: Applies the gradients of all modules but the last at once, and they are
                freed. Unset, they are left in ``.grad``, for the loop's own ``optimizer.step()``,
                after clipping, accumulation or unscaling.
            scale: What the loop does to the loss before its backward pass, to be done to the
                modules' losses, too: ``scaler.scale``, or ``lambda loss: loss / 4``.

        Returns:
            The model's loss, or dict of losses, attached to the last module alone.

        Raises:
            LocalLearningError: See the class.
        """
        if not self.model.training:
            raise LocalLearningError(
                'LocalLearning trains, and the model is in evaluation mode: call model.train() '
                'first, or the model itself for predictions'
            )
        self._gradients.apply_with(optimizer, scale)
        self._hook.begin()
        inputs, targets = self._task.prepared(inputs, targets)
        losses = self._task(inputs, targets, mode='loss')
        if not self._hook.trains(self._task.parse_losses(losses)[0]):
            losses = {
                name: torch.zeros_like(loss, requires_grad=True) for name, loss in losses.items()
            }
        return self._task.as_returned(losses)


def _find_backbone(model: nn.Module, name: Optional[str]) -> str:
    """The name of the submodule that is cut; ``''`` for the model itself."""
    if name is not None:
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise LocalLearningError(
                f'backbone={name!r}: {type(model).__name__} has no such submodule, it has '
                f'{", ".join(dict(model.named_children()))}'
            ) from error
        return name
    for found, module in model.named_modules():
        # Containers of layers are no networks.
        if any(True for _ in module.children()):
            try:
                unroll(module)
            except LocalLearningError as error:
                if found == '':
                    reason = error
                continue
            return found
    raise LocalLearningError(str(reason)) from reason


def _auxiliary_config(auxiliary: Union[str, dict], scores: Optional[int]) -> dict:
    """The config of auxiliary networks by name, with a classifier's number of classes.

    Args:
        auxiliary: See :class:`LocalLearning`.
        scores: Number of classes, where the model is a classifier.
    """
    config = dict(type=auxiliary) if isinstance(auxiliary, str) else dict(auxiliary)
    kind = auxiliary_class(config.setdefault('type', 'SLM'))
    if kind is None:
        known = sorted(filter(auxiliary_class, MODELS.module_dict))
        raise LocalLearningError(
            f'auxiliary={auxiliary!r} names no auxiliary network: give one of {", ".join(known)}'
        )
    if scores is not None and 'num_classes' in signature(kind).parameters:
        config.setdefault('num_classes', scores)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MMEngine's line for each parameter that is initialized."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Gradients:
    """In the place of an optimizer wrapper: what is done with the modules' losses.

    Args:
        auxiliary: The auxiliary networks.
    """

    def __init__(self, auxiliary: nn.Module):
        self._auxiliary = auxiliary
        self._eager: Optional[LocalOptimWrapper] = None
        self._optimizer: Optional[Optimizer] = None
        self._scale: Optional[Callable[[Tensor], Tensor]] = None

    def apply_with(
        self, optimizer: Optional[Optimizer], scale: Optional[Callable[[Tensor], Tensor]]
    ) -> None:
        """Set what comes after the backward pass, and before it. See :class:`LocalLearning`."""
        self._scale, self._optimizer = scale, optimizer
        if optimizer is None or self._eager is not None and self._eager.optimizer is optimizer:
            return
        if scale is not None:
            raise LocalLearningError(
                'a scaled or accumulated gradient cannot be applied at once: leave out optimizer '
                'or scale'
            )
        known = {id(p) for group in optimizer.param_groups for p in group['params']}
        if any(id(p) not in known for p in self._auxiliary.parameters()):
            raise LocalLearningError(
                'the optimizer has no parameters of the auxiliary networks: make it of '
                'local.parameters()'
            )
        self._eager = LocalOptimWrapper(optimizer, apply='eager')

    def check_with(self, loss_check: LossCheck) -> None:
        """The loop's own loss is looked at by :class:`LocalLearning`."""

    def accumulate_local(self, loss: Tensor) -> None:
        """Compute gradients. See :class:`LocalOptimWrapper`."""
        with torch.autocast(loss.device.type, enabled=False):
            (loss if self._scale is None else self._scale(loss)).backward()

    def update_local(self, loss: Tensor, parameters: List[nn.Parameter]) -> None:
        """Compute gradients, and apply them if there is an optimizer for it."""
        if self._optimizer is not None and self._eager is not None:
            self._eager.update_local(loss, parameters)
            return
        self.accumulate_local(loss)
        torch.clear_autocast_cache()


class _LoopHook(FBAHook):
    """:class:`FBAHook` under a loop that is no MMEngine runner's.

    Args:
        scope: See :class:`FBAHook`.
        invalid_loss: The same.
        num_modules: K.
    """

    def __init__(self, scope: str, invalid_loss: str, num_modules: int):
        super().__init__(scope, invalid_loss=invalid_loss)
        # The loop's own, which torch.manual_seed sets.
        self._generator = torch.default_generator
        self._iteration = -1
        self._check: LossCheck = LossCheck(invalid_loss, num_modules)

    def begin(self) -> None:
        """Start an iteration."""
        self._iteration += 1
        self._check.begin(self._iteration)
        self.clear_log()

    def trains(self, loss: Tensor) -> bool:
        """Whether the last module is to be trained on the model's loss."""
        return self._check.finishes(loss)

    def losses(self) -> Dict[str, Tensor]:
        """The modules' losses in this iteration, by the names that logs have for them."""
        return dict(self._log)


@dataclass
class _Sample:
    target: Dict[str, Tensor]
    size: Tuple[int, int]


class _Prepared(nn.Module):
    """In the place of a detector's transform: images that it has transformed already."""

    def __init__(self, kind: type, sizes: List[Tuple[int, int]]):
        super().__init__()
        self._kind, self._sizes = kind, sizes

    def forward(self, images: Tensor, targets: list) -> tuple:
        return self._kind(images, self._sizes), targets

    def postprocess(self, detections: list, *sizes: Any) -> list:
        return detections


class _Task(BaseModel):
    """A plain model as the engine sees it: a backbone, and losses of what is behind it.

    Args:
        network: The model.
        name: Of its part that is cut; ``''`` if that is the model itself.
        local_backbone: Around that part.
        criterion: See :class:`LocalLearning`.
        scores: Number of classes, where the model is a classifier.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        local_backbone: LocalBackbone,
        criterion: Optional[Criterion],
        scores: Optional[int],
    ):
        super().__init__()
        self.backbone = local_backbone
        # The model itself, if it isn't the backbone: its layers are found once.
        self.network = network if name else None
        self._holder, _, self._key = name.rpartition('.')
        self._criterion = criterion
        if scores is not None:
            self.head = nn.Identity()
            self.head.num_classes = scores  # type: ignore[assignment]
        self.output: Any = None

    def forward(
        self, inputs: Any, data_samples: Any = None, mode: str = 'loss'
    ) -> Dict[str, Tensor]:
        """The losses of the model. See :class:`BaseModel`."""
        return self.loss(inputs, data_samples)

    def loss(self, inputs: Any, data_samples: Any) -> Dict[str, Tensor]:
        """The losses of the model, under names that the engine knows for losses."""
        if self._criterion is not None:
            output = self._run(inputs)
            self.output = _detached(output)
            return dict(loss_task=self._criterion(output, data_samples))
        losses = self._run(inputs, data_samples)
        return {f'loss_{name}': value for name, value in losses.items()}

    def _run(self, inputs: Any, *targets: Any) -> Any:
        """Run the model, with the engine in the place of its backbone."""
        network = self.backbone if self.network is None else self.network
        instead: Dict[Tuple[nn.Module, str], nn.Module] = {}
        if self.network is not None:
            instead[network.get_submodule(self._holder), self._key] = self.backbone
        if targets and self._transforms:
            samples = targets[0]
            targets = ([sample.target for sample in samples],)
            sizes = [sample.size for sample in samples]
            instead[network, 'transform'] = _Prepared(self._image_list, sizes)
        with _instead(instead):
            return network(inputs, *targets)

    def prepared(self, inputs: Any, targets: Any) -> Tuple[Any, Any]:
        """A batch as the backbone will see it: a detector's images, resized and joined once.

        Args:
            inputs: Of the loop.
            targets: The same.
        """
        transform = getattr(self.network, 'transform', None)
        self._transforms = self._criterion is None and hasattr(transform, 'postprocess')
        if transform is None or not self._transforms:
            return inputs, targets
        images, targets = transform(inputs, targets)
        self._image_list = type(images)
        return images.tensors, [
            _Sample(target, size) for target, size in zip(targets, images.image_sizes)
        ]

    def as_returned(self, losses: Dict[str, Tensor]) -> Union[Tensor, Dict[str, Tensor]]:
        """Losses as the model or the criterion has made them.

        Args:
            losses: From :meth:`loss`.
        """
        if self._criterion is not None:
            return losses['loss_task']
        return {name[len('loss_') :]: value for name, value in losses.items()}


@contextmanager
def _instead(modules: Dict[Tuple[nn.Module, str], nn.Module]) -> Iterator[None]:
    """Within this context, a model has other submodules in the place of some of its own."""
    before = {place: place[0]._modules[place[1]] for place in modules}
    for (holder, key), module in modules.items():
        holder._modules[key] = module
    try:
        yield
    finally:
        for (holder, key), own in before.items():
            holder._modules[key] = own


def _detached(output: Any) -> Any:
    if isinstance(output, dict):
        return {key: _detached(value) for key, value in output.items()}
    return output.detach() if isinstance(output, Tensor) else output
