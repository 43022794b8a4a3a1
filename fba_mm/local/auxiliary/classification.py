"""What the auxiliary networks that classify images have in common."""

from abc import abstractmethod
from typing import Dict, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import check_count
from ...errors import LocalLearningError
from ...tasks.classification import classes_of
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary


class ClassificationAuxiliary(Auxiliary):
    """An auxiliary network that learns the image's class from the module's output alone.

    It uses neither the bank nor the model's head. A method is a subclass with its layers,
    :meth:`scores` and, unless its loss is their cross-entropy, :meth:`local_losses`. Convolutions
    start from He's initialization (He et al., "Delving Deep into Rectifiers", ICCV 2015; normal, by
    the fan out), as in the released code of these methods, and linear layers from PyTorch's own.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``num_classes`` is missing; before training: the model is no
            classifier, or its head has another number of classes; in training: an image has no
            class or several, or a batch has one image where the method normalizes over images.

    Example:
        >>> @MODELS.register_module()
        ... class OneLayer(ClassificationAuxiliary):
        ...     def __init__(self, cut_point, num_classes=None, **kwargs):
        ...         super().__init__(cut_point, num_classes, **kwargs)
        ...         self.fc = nn.Linear(cut_point.channels, num_classes)
        ...
        ...     def scores(self, x):
        ...         return self.fc(x.mean((2, 3)))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        self.num_classes = check_count(
            'auxiliary.num_classes',
            num_classes,
            what="that of the model's head,",
            fix=f", as in auxiliary=dict(type='{self.method}', num_classes=10)",
        )

    def init_weights(self) -> None:
        """Draw the weights of convolutions."""
        if self.is_init:
            return
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    @property
    def method(self) -> str:
        """The name under which the method is registered."""
        return type(self).__name__

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """The logits of each class, (N, num_classes).

        Args:
            x: The module's output as a map, (N, C, H, W).
        """

    def features(self, x: Tensor) -> Tensor:
        """What :meth:`scores` takes of the module's output: all of it, as a map (N, C, H, W).

        Args:
            x: The module's output, as the backbone passes it on.
        """
        return self.cut_point.as_map(x)

    def local_losses(self, x: Tensor, labels: Tensor, step: LocalStep) -> Losses:
        """The module's losses, before ``loss_weight``.

        Args:
            x: The module's output as a map, (N, C, H, W), attached to the module's graph.
            labels: (N,) classes, or (N, num_classes) shares where a batch augmentation has mixed
                images.
            step: The batch, and the model around the backbone.

        Returns:
            Scalars under names with ``loss`` in them; other entries are only logged.
        """
        return dict(loss_cls=cross_entropy(self.scores(x), labels))

    def logits(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tensor:
        """The logits of each class. See :class:`Auxiliary`."""
        return self.scores(self.features(x))

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The module's losses. See :class:`Auxiliary`."""
        x = self.features(x)
        if len(x) == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.modules()):
            raise LocalLearningError(
                f'{self.method} normalizes over the images of a batch, and this batch has one: set '
                'train_dataloader.drop_last=True, or a larger train_dataloader.batch_size'
            )
        return self.weighted(self.local_losses(x, step.labels(), step))

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """Compare the classes with those of the model's head."""
        classes = classes_of(model)
        if classes is None:
            raise LocalLearningError(
                f'{self.method} serves image classification, and {type(model).__name__} has no '
                "classification head: take auxiliary=dict(type='SLM')"
            )
        if classes != self.num_classes:
            raise LocalLearningError(
                f"auxiliary.num_classes={self.num_classes}, but the model's head has {classes}: "
                'give both the same'
            )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, in float32 also under autocast.

    Args:
        logits: (N, num_classes).
        labels: (N,) classes, or (N, num_classes) shares.
    """
    return F.cross_entropy(logits.float(), labels.float() if labels.ndim == 2 else labels)


def draw_linear_of_tokens(layer: nn.Linear) -> None:
    """Draw the weights of a linear layer as Vision Transformers do: of deviation 0.02, no bias.

    Args:
        layer: The layer.
    """
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as (N, num_classes) shares, in float32.

    Args:
        labels: (N,) classes, or shares already.
        num_classes: Number of classes.
    """
    if labels.ndim == 2:
        return labels.float()
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
