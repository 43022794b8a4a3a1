"""DGL: a small network on a pooled map, which is cheap and looks further than a linear layer."""

from typing import List, Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_count
from ...pooling import average_pool_to
from ..partition import CutPoint
from .classification import ClassificationAuxiliary


@MODELS.register_module()
class DGL(ClassificationAuxiliary):
    """Decoupled greedy learning: 1×1 convolutions and linear layers on a quarter of the map.

    Adaptive average pooling to a quarter of the height and of the width, rounded up; three times
    1×1 convolution, batch norm and ReLU; pooling to 2×2 positions; twice linear, batch norm and
    ReLU; linear. All convolutions have the module's c channels, all hidden layers 4c.

    Source: Belilovsky, Eickenberg and Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020,
    the auxiliary network called MLP-SR, and the code released with it. The defaults are those of
    the comparisons in AugLocal (Ma et al., ICLR 2024) and FBA. The authors' own has
    ``hidden_layers=3, hidden_bias=True``. Behind MAN++ it has ``width=128, positions=1,
    hidden_width=512`` besides. The map is pooled to its positions whatever its size, so that those
    of smaller ones are repeated.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        width: Channels of the convolutions; unset, the module's.
        positions: Height and width of the map that the first linear layer sees.
        hidden_layers: Linear layers before the last one.
        hidden_width: Their outputs; unset, as many as inputs of the first.
        hidden_bias: Give them a bias, which the batch norm behind them takes out again.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: See :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='DGL', num_classes=10)
        >>> auxiliary = dict(type='DGL', num_classes=10, hidden_layers=3, hidden_bias=True)
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        width: Optional[int] = None,
        positions: int = 2,
        hidden_layers: int = 2,
        hidden_width: Optional[int] = None,
        hidden_bias: bool = False,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        for name, value, least in (
            ('positions', positions, 1),
            ('hidden_layers', hidden_layers, 0),
            ('width', width or 1, 1),
            ('hidden_width', hidden_width or 1, 1),
        ):
            check_count(f'auxiliary.{name}', value, least)
        channels, self.positions = cut_point.channels, positions
        convs: List[nn.Module] = []
        for _ in range(3):
            out_channels = width or channels
            convs += [
                nn.Conv2d(channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        self.convs = nn.Sequential(*convs)
        features = channels * positions**2
        linears: List[nn.Module] = []
        for _ in range(hidden_layers):
            outputs = hidden_width or features
            linears += [
                nn.Linear(features, outputs, bias=hidden_bias),
                nn.BatchNorm1d(outputs),
                nn.ReLU(),
            ]
            features = outputs
        self.mlp = nn.Sequential(*linears, nn.Linear(features, num_classes))

    def scores(self, x: Tensor) -> Tensor:
        """See :class:`ClassificationAuxiliary`."""
        quarter = [-(-size // 4) for size in x.shape[2:]]
        x = self.convs(average_pool_to(x, quarter))
        return self.mlp(average_pool_to(x, self.positions).flatten(1))
