"""DGL for detectors: the module's map, at all sizes that the detector's pyramid expects."""

from typing import Dict, List, Optional, Tuple

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import LocalLearningError
from ...pooling import average_pool_to
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary
from .own_head import build_own_head, check_own_head


@MODELS.register_module()
class DGLFPN(Auxiliary):
    """Decoupled greedy learning with a feature pyramid and a detection head of its own.

    Three times 1×1 convolution, batch norm and ReLU at the module's c channels, as in :class:`DGL`;
    the result is enlarged bilinearly, or pooled, to the size of each map that the backbone returns;
    the own neck, a feature pyramid, transforms and merges these; the own head learns the task. The
    module sees itself alone: there is no feature bank.

    Source: the comparison in the FBA paper's Table 3, after Belilovsky, Eickenberg and Oyallon,
    "Decoupled Greedy Learning of CNNs", ICML 2020. The paper says that DGL's auxiliary network was
    given an FPN, with upsampling to several scales and transformations, and no more. Settled here:
    the convolutions are DGL's and work at the map's own size, which DGL pools to a quarter: a
    detector needs the positions; no linear layers; all maps have c channels.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        head: Config of a model without a backbone, as for :class:`SLM`: the own neck and head.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: The backbone returns no maps, there is no ``head`` or neck in it, or it
            doesn't fit the maps or the model's classes.

    Example:
        >>> auxiliary = dict(type='DGLFPN', head=dict(
        ...     type='RetinaNet', neck=_base_.model.neck, bbox_head=_base_.model.bbox_head,
        ...     train_cfg=_base_.model.train_cfg))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        head: Optional[dict] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        if cut_point.reduced_head is not None or any(level.pooled for level in cut_point.levels):
            raise LocalLearningError(
                'DGLFPN makes maps for a feature pyramid, and this backbone returns none: take '
                "auxiliary=dict(type='DGL') for a classifier"
            )
        if not head or 'neck' not in head and head.get('type') != 'LightRetinaNet':
            raise LocalLearningError(
                'auxiliary.head has no neck: a DGLFPN needs a feature pyramid and a head of its '
                "own, give copies of the model's, head=dict(type=..., neck=_base_.model.neck, "
                'bbox_head=_base_.model.bbox_head, train_cfg=_base_.model.train_cfg)'
            )
        channels = cut_point.channels
        convs: List[nn.Module] = []
        for _ in range(3):
            convs += [
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        self.convs = nn.Sequential(*convs)
        self.level_channels = [channels] * len(cut_point.levels)
        self.head = build_own_head(
            head, self.level_channels, [stage.stride for stage in cut_point.levels]
        )

    def features(self, x: Tensor, step: LocalStep) -> Tuple[Tensor, ...]:
        """The module's map at the size of each map that the backbone returns, (N, c, H, W) each.

        Args:
            x: Output of the module, (N, c, H, W).
            step: The batch.
        """
        x = self.convs(self.cut_point.as_map(x))
        maps = []
        for level in self.cut_point.levels:
            size = tuple(-(-pixels // level.stride) for pixels in step.images.shape[-2:])
            if size == tuple(x.shape[-2:]):
                maps.append(x)
            elif level.stride < self.cut_point.stride:
                maps.append(F.interpolate(x, size, mode='bilinear', align_corners=False))
            else:
                maps.append(average_pool_to(x, size))
        return tuple(maps)

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The detector's losses on the module's pyramid. See :class:`Auxiliary`."""
        return step.head_loss(
            self.head, self.head.backbone, self.features(x, step), self.loss_weight
        )

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """See :func:`check_own_head`."""
        check_own_head(self.head, self.level_channels, model, source)
