"""DGL: a small network on a pooled map, which is cheap and looks further than a linear layer."""
from typing import List, Optional

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses
from .classification import ClassificationAuxiliary, cross_entropy


@MODELS.register_module()
class DGL(ClassificationAuxiliary):
    """Decoupled greedy learning: 1×1 convolutions and linear layers on a quarter of the map.

    Adaptive average pooling to a quarter of the height and of the width, rounded up; three times
    1×1 convolution, batch norm and ReLU; pooling to 2×2 positions; twice linear, batch norm and
    ReLU; linear. All convolutions have the module's c channels, all hidden layers 4c.

    Source: Belilovsky, Eickenberg and Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020,
    the auxiliary network called MLP-SR. Theirs has three hidden linear layers; with two, as here,
    it is that of the comparisons in AugLocal (Ma et al., ICLR 2024) and FBA. Layers before a batch
    norm have no bias: the norm takes it out again. The map is pooled to 2×2 whatever its size, so
    that smaller ones are repeated.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: See :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='DGL', num_classes=10)
    """

    def __init__(self,
                 cut_point: CutPoint,
                 num_classes: Optional[int] = None,
                 loss_weight: float = 1.0,
                 init_cfg: Optional[dict] = None):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        channels, width = cut_point.channels, 4 * cut_point.channels
        convs: List[nn.Module] = []
        for _ in range(3):
            convs += [
                nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            ]
        self.convs = nn.Sequential(*convs)
        linears: List[nn.Module] = []
        for _ in range(2):
            linears += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.mlp = nn.Sequential(*linears, nn.Linear(width, num_classes))

    def local_losses(self, x: Tensor, labels: Tensor, step: LocalStep) -> Losses:
        """Cross-entropy. See :class:`ClassificationAuxiliary`."""
        quarter = [-(-size // 4) for size in x.shape[2:]]
        x = self.convs(F.adaptive_avg_pool2d(x, quarter))
        logits = self.mlp(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return dict(loss_cls=cross_entropy(logits, labels))
