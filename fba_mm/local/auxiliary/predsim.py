"""PredSim: predict the class, and let images be as similar as their classes are."""

from typing import Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import check_count, check_number
from ...pooling import AveragePoolTo
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses
from .classification import ClassificationAuxiliary, cross_entropy, one_hot


@MODELS.register_module()
class PredSim(ClassificationAuxiliary):
    """A linear prediction of the class, and a convolution whose features match in similarity.

    With R(f) the batch's matrix of cosine similarities of f, each image's f less its mean, the
    loss is (1 - β) · cross-entropy(linear(pool(x))) + β · mean((R(s) - R(y))²). Here s is the
    standard deviation over space of each channel of conv(x), and y the one-hot labels. Maps of a
    single position have no deviation: there s is conv(x) itself.

    Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, and
    the code released with it. The map is pooled before the linear layer: height and width of the
    windows are doubled by turns until the map has no more than ``pooled_values`` values. In the
    comparisons of AugLocal (Ma et al., ICLR 2024) and FBA these are 512: windows of 8×4, 4×4 and
    4×2 positions for the 16, 32 and 64 channels of a ResNet-32. The authors' own networks for CIFAR
    take 2048 or 4096, and their linear layer starts at zero.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        similarity_weight: β, the share of similarity matching in the loss.
        pooled_values: The most values that the linear layer sees, unless one position of the map
            has more.
        image_size: Height and width of the training images, in pixels, for the pooled size. Maps of
            other images are pooled to the same size.
        zero_init: Start the linear layer at zero.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``similarity_weight`` is not in 0 to 1; and see
            :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='PredSim', num_classes=10)
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        similarity_weight: float = 0.99,
        pooled_values: int = 512,
        image_size: int = 32,
        zero_init: bool = False,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        self.similarity_weight = check_number(
            'auxiliary.similarity_weight', similarity_weight, least=0, most=1
        )
        check_count('auxiliary.pooled_values', pooled_values)
        check_count('auxiliary.image_size', image_size)
        channels = cut_point.channels
        size = pooled_size(channels, max(round(image_size / cut_point.stride), 1), pooled_values)
        self.pool = AveragePoolTo(size)
        self.fc = nn.Linear(channels * size[0] * size[1], num_classes)
        if zero_init:
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def scores(self, x: Tensor) -> Tensor:
        """Of the pooled map. See :class:`ClassificationAuxiliary`."""
        return self.fc(self.pool(x).flatten(1))

    def local_losses(self, x: Tensor, labels: Tensor, step: LocalStep) -> Losses:
        """Prediction and similarity matching. See :class:`ClassificationAuxiliary`."""
        prediction = cross_entropy(self.scores(x), labels)
        # Similarities of nearly equal images are lost in half precision.
        features = self.conv(x).flatten(2).float()
        features = features.std(2) if features.shape[2] > 1 else features[..., 0]
        matching = F.mse_loss(
            _similarities(features), _similarities(one_hot(labels, self.num_classes))
        )
        return dict(
            loss_cls=(1 - self.similarity_weight) * prediction,
            loss_similarity=self.similarity_weight * matching,
        )


def pooled_size(channels: int, size: int, values: int) -> Tuple[int, int]:
    """Height and width to which a map is pooled, so that it has no more than so many values.

    Args:
        channels: Channels of the map.
        size: Its height and width.
        values: The most values, over all channels and positions.
    """
    window, turn = [1, 1], 0
    pooled = [size, size]
    while channels * pooled[0] * pooled[1] > values and max(pooled) > 1:
        window[turn] *= 2
        pooled[turn] = -(-size // window[turn])
        turn = 1 - turn
    return pooled[0], pooled[1]


def _similarities(features: Tensor) -> Tensor:
    """(N, D) to the (N, N) cosines between images, each less its mean."""
    unit = F.normalize(features - features.mean(1, keepdim=True), dim=1)
    # A product that autocast would compute in half precision.
    with torch.autocast(unit.device.type, enabled=False):
        return unit @ unit.T
