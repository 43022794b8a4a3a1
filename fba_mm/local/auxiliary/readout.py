"""Readout: what the network itself does behind its last block."""

from typing import Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..partition import CutPoint
from ..partition.cut_point import same
from .classification import ClassificationAuxiliary, draw_linear_of_tokens


@MODELS.register_module()
class Readout(ClassificationAuxiliary):
    """What the backbone would return of the module's output, and a linear layer.

    Of a Vision Transformer's tokens that is their norm and the class token (or the mean, by the
    backbone's ``out_type``), with a norm of its own; of a map it is the mean over all positions,
    so that behind a ResNet this is :class:`Greedy`.

    Source: the host of MAN++ for Vision Transformers (Su et al., TPAMI 2026), in the code released
    with it. There, linear layers start from a truncated normal distribution of deviation 0.02.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: See :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='MAN++', num_classes=1000, blocks=2, host=dict(type='Readout'))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        last = cut_point.levels[-1].level
        self.output: nn.Module = nn.Identity()
        if cut_point.reduced_output is not None and last is not None:
            self.output = cut_point.reduced_output(last, cut_point.channels)
        self.fc = nn.Linear(cut_point.channels, num_classes)

    def init_weights(self) -> None:
        """Draw the linear layer's weights, where the backbone passes on tokens."""
        if self.is_init:
            return
        super().init_weights()
        if self.cut_point.as_map is not same:
            draw_linear_of_tokens(self.fc)

    def features(self, x: Tensor) -> Tensor:
        """The module's output, as the backbone passes it on."""
        return x

    def scores(self, x: Tensor) -> Tensor:
        """The logits of each class, (N, num_classes).

        Args:
            x: The module's output.
        """
        x = self.output(x)
        return self.fc(x.mean((2, 3)) if x.ndim == 4 else x)
