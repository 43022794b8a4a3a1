"""Greedy: the module's features are to be linearly separable."""

from typing import Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..partition import CutPoint
from .classification import ClassificationAuxiliary


@MODELS.register_module()
class Greedy(ClassificationAuxiliary):
    """Global average pooling and one linear layer: the lightest auxiliary network there is.

    What others are measured against, and the light head of MAN++. Source: Belilovsky, Eickenberg
    and Oyallon, "Greedy Layerwise Learning Can Scale to ImageNet", ICML 2019, with an auxiliary
    network of one layer.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: See :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='Greedy', num_classes=10)
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        self.fc = nn.Linear(cut_point.channels, num_classes)

    def scores(self, x: Tensor) -> Tensor:
        """Of the pooled features. See :class:`ClassificationAuxiliary`."""
        return self.fc(x.mean((2, 3)))
