"""What every auxiliary network has in common."""

import inspect
from abc import ABCMeta, abstractmethod
from typing import Any, Dict, Optional, Set, Tuple, Type

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_number
from ...errors import LocalLearningError
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses, StubbableBackbone, map_losses


class Auxiliary(BaseModule, metaclass=ABCMeta):
    """The training-only network at the end of a module, which gives the module its loss.

    A new method is one subclass in one file of this folder, registered in MMEngine's ``MODELS``.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.
    """

    def __init__(
        self, cut_point: CutPoint, loss_weight: float = 1.0, init_cfg: Optional[dict] = None
    ):
        super().__init__(init_cfg)
        self.cut_point = cut_point
        self.loss_weight = check_number(
            'auxiliary.loss_weight',
            loss_weight,
            above=0,
            fix=': without a positive loss a module does not train; or a smaller num_modules',
        )

    @abstractmethod
    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The module's losses.

        Args:
            x: Output of the module, (N, C, H, W), attached to the module's graph.
            levels: The maps that the module itself contributes to the backbone's output, by their
                index there, attached too.
            step: The batch, the bank, and the model around the backbone.
        """

    def logits(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tensor:
        """What the auxiliary network says of the images, (N, classes).

        Args:
            x: Output of the module, (N, C, H, W).
            levels: See :meth:`loss`.
            step: The batch, the bank, and the model around the backbone.

        Raises:
            LocalLearningError: It doesn't classify.
        """
        raise LocalLearningError(
            f'{type(self).__name__} makes no class scores: leave LocalAccuracyHook out of '
            'custom_hooks'
        )

    # Whether it reads weights of the next module, which may be in pieces while this one trains.
    follows_next_module = False
    # Whether the bank shall hold the pooled outputs of modules.
    reads_pooled = False

    def after_backward(self, step: LocalStep) -> None:
        """Called once the gradients of the module's losses are there, before the next module runs.

        Args:
            step: The batch and the bank.
        """

    @property
    def shares_head(self) -> bool:
        """Whether it learns from the model's own neck and head, not from some of its own."""
        return getattr(self, 'head', self) is None

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See what the whole network made of the batch, after all modules have run.

        Args:
            features: As the backbone returns them, detached.
            step: The batch and the bank.
        """

    def describe(self) -> str:
        """What it is, for the log, in some words."""
        count = sum(p.numel() for p in self.parameters())
        return f'{type(self).__name__} with {count / 1e6:.2f} M parameters of its own'

    def levels_read(self, model: nn.Module, source: StubbableBackbone) -> Set[int]:
        """The levels of the backbone's output that it computes with; in doubt all of them.

        Args:
            model: The model around the backbone.
            source: The backbone in it.
        """
        return {stage.level for stage in self.cut_point.levels}

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """Refuse, before training, a model that this auxiliary network can't serve.

        Args:
            model: The model around the backbone.
            source: The backbone in it, which holds the auxiliary networks.

        Raises:
            LocalLearningError: Names what does not fit, and how to fix it.
        """

    def check_bank(self, scope: str) -> None:
        """Refuse, before training, a bank in which this auxiliary network finds nothing.

        Args:
            scope: Of the feature bank.

        Raises:
            LocalLearningError: Names a scope that fits.
        """

    def check_module_parallel(self) -> None:
        """Refuse, before training, that later modules are in other processes than this one.

        Whatever ties a module to others, but for the features and the bank that it is handed.

        Raises:
            LocalLearningError: Names the tie, and how to fix it.
        """
        if type(self).observe is not Auxiliary.observe:
            raise LocalLearningError(
                f'{type(self).__name__} learns from what later modules make of a batch, which '
                "another process has then: set model_wrapper_cfg.type='LocalDataParallel', or take "
                'another auxiliary network'
            )

    def weighted(self, losses: Losses) -> Losses:
        """Losses that the method computes itself, times ``loss_weight``.

        Args:
            losses: Entries that aren't losses stay as they are.
        """
        return map_losses(losses, lambda loss: loss * self.loss_weight)


def auxiliary_class(kind: Any) -> Optional[Type[Auxiliary]]:
    """The auxiliary network that the ``type`` of a config stands for; None if it is none.

    Args:
        kind: A name, or the class itself.

    Example:
        >>> auxiliary_class('DGL').__name__, auxiliary_class('ResNet')
        ('DGL', None)
    """
    found = MODELS.module_dict.get(kind) if isinstance(kind, str) else kind
    return found if inspect.isclass(found) and issubclass(found, Auxiliary) else None
