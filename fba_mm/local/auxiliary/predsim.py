"""PredSim: predict the class, and let images be as similar as their classes are."""
from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import LocalLearningError
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses
from .classification import ClassificationAuxiliary, cross_entropy, one_hot

# Values that the linear layer sees, about.
_POOLED_VALUES = 1024


@MODELS.register_module()
class PredSim(ClassificationAuxiliary):
    """A linear prediction of the class, and a convolution whose features match in similarity.

    With R(f) the batch's matrix of cosine similarities of f, each image's f less its mean, the
    loss is (1 - β) · cross-entropy(linear(pool(x))) + β · mean((R(s) - R(y))²). Here s is the
    standard deviation over space of each channel of conv(x), and y the one-hot labels. Maps of a
    single position have no deviation: there s is conv(x) itself.

    Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML
    2019. Pooling: to k × k positions, k = max(1, round(√(1024 / channels))), so that the
    linear layer sees about 1024 values (1024, 1152 and 1024 for 16, 32 and 64 channels). The
    authors halve height and width by turns until there are no more than a given number.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        similarity_weight: β, the share of similarity matching in the loss.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``similarity_weight`` is not in 0 to 1; and see
            :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='PredSim', num_classes=10)
    """

    def __init__(self,
                 cut_point: CutPoint,
                 num_classes: Optional[int] = None,
                 similarity_weight: float = .99,
                 loss_weight: float = 1.0,
                 init_cfg: Optional[dict] = None):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        if not 0 <= similarity_weight <= 1:
            raise LocalLearningError(
                f'auxiliary.similarity_weight={similarity_weight}: give 0 to 1')
        self.similarity_weight = similarity_weight
        channels = cut_point.channels
        size = max(round((_POOLED_VALUES / channels)**.5), 1)
        self.pool = nn.AdaptiveAvgPool2d(size)
        self.fc = nn.Linear(channels * size**2, num_classes)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def local_losses(self, x: Tensor, labels: Tensor, step: LocalStep) -> Losses:
        """Prediction and similarity matching. See :class:`ClassificationAuxiliary`."""
        prediction = cross_entropy(self.fc(self.pool(x).flatten(1)), labels)
        # Similarities of nearly equal images are lost in half precision.
        features = self.conv(x).flatten(2).float()
        features = features.std(2) if features.shape[2] > 1 else features[..., 0]
        matching = F.mse_loss(
            _similarities(features), _similarities(one_hot(labels, self.num_classes)))
        return dict(
            loss_cls=(1 - self.similarity_weight) * prediction,
            loss_similarity=self.similarity_weight * matching)


def _similarities(features: Tensor) -> Tensor:
    """(N, D) to the (N, N) cosines between images, each less its mean."""
    unit = F.normalize(features - features.mean(1, keepdim=True), dim=1)
    # A product that autocast would compute in half precision.
    with torch.autocast(unit.device.type, enabled=False):
        return unit @ unit.T
