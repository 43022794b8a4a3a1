"""FBA's auxiliary network: one block of the module's own stage, and the bank."""

from typing import Dict, Optional, Tuple

from mmengine.registry import MODELS
from torch import Tensor, cat, nn

from ...arguments import check_count
from ...errors import LocalLearningError
from ..local_step import LocalStep
from ..partition import CutPoint
from ..partition.cut_point import same
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary
from .own_head import block_channels, build_own_head, check_own_head
from .slm import PooledShortcut, blank_map


@MODELS.register_module()
class StageTail(Auxiliary):
    """One block like the last of the module's stage, what the bank holds, and a head of its own.

    The block is that of equation 2, which reuses the tail of the module's own stage and may have
    fewer channels. What is fused with it (equation 3) depends on the task:

    - *Detection, segmentation*: the own, light head has a neck over the block's map and the bank's
      maps of all other stages (equation 5). Those of earlier stages are there with
      ``FBAHook(scope='past')``, and zeros without; those of later ones are the block's map, pooled,
      plus with ``scope='all'`` the bank's.
    - *Image classification*: the pooled outputs of earlier modules are joined with the block's
      before the class head.

    :class:`SLM` builds what the earlier draft describes, a block for each later stage. Networks
    that make images have :class:`SLMReconstruction`.

    Source: FBA paper, equations 2 to 5. Settled here: the stem has no residual block, and takes one
    with its own channels; the fusion is a sum, for a module whose map the neck does not read would
    learn nothing from the bank's alone.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        head: Config of a model without a backbone, as for :class:`SLM`.
        channels: Channels of the block's output. Unset, those of a light head, and otherwise those
            of the module's.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: The network makes images or its blocks pass on tokens, there is no head,
            or one that does not fit the module's maps or the model's classes.

    Example:
        >>> auxiliary = dict(type='StageTail', head=dict(type='LightRetinaNet', num_classes=80))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        head: Optional[dict] = None,
        channels: Optional[int] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        if cut_point.reduced_head is not None or cut_point.as_map is not same:
            raise LocalLearningError(
                'StageTail is for backbones whose blocks pass on maps: take auxiliary.type '
                'SLM, or SLMReconstruction where the network makes images'
            )
        if not isinstance(head, dict):
            raise LocalLearningError(
                f'auxiliary.head={head}: StageTail learns from a head of its own, give the config '
                "of one, as in head=dict(type='LightRetinaNet', num_classes=80)"
            )
        if channels is not None:
            check_count('auxiliary.channels', channels)
        self.channels = channels or block_channels(head) or cut_point.channels
        self.block = cut_point.reduced_block(cut_point.channels, self.channels, 1)
        self.shortcuts = nn.ModuleDict()
        self.reads_pooled = isinstance(head.get('head'), dict)
        if self.reads_pooled:
            total = self.channels + sum(cut_point.earlier_channels)
            head = dict(head, head=dict(head['head'], in_channels=total))
            self.level_channels = [total]
        else:
            self.level_channels = []
            for stage in cut_point.levels:
                own = stage.stage == cut_point.stage
                self.level_channels.append(self.channels if own else stage.channels)
                if stage.stage > cut_point.stage:
                    stride = max(round(stage.stride / cut_point.stride), 1)
                    self.shortcuts[str(stage.level)] = PooledShortcut(stage.channels, stride)
        self.head = build_own_head(
            head, self.level_channels, [stage.stride for stage in cut_point.levels]
        )

    def features(self, x: Tensor, step: LocalStep) -> Tuple[Tensor, ...]:
        """What the head sees.

        Args:
            x: Output of the module, (N, C, H, W).
            step: The batch and the bank.

        Returns:
            A map for each level that the backbone returns, (N, C, H, W); for classifiers one of a
            single position.
        """
        x = self.block(x)
        if self.reads_pooled:
            own = x.mean((2, 3))
            # An empty bank tells nothing.
            banked = step.bank.pooled() or [
                own.new_zeros(len(x), n) for n in self.cut_point.earlier_channels
            ]
            return (cat([own, *(b.to(own.dtype) for b in banked)], 1)[..., None, None],)
        maps = []
        for stage in self.cut_point.levels:
            banked = step.bank.get(stage.level)
            if stage.stage == self.cut_point.stage:
                maps.append(x)
            elif stage.stage > self.cut_point.stage:
                own = self.shortcuts[str(stage.level)](x)
                maps.append(own if banked is None else own + banked.to(own.dtype))
            else:
                maps.append(blank_map(stage, x, step) if banked is None else banked)
        return tuple(maps)

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The task's losses on the block's output and the bank. See :class:`Auxiliary`."""
        return step.head_loss(
            self.head, self.head.backbone, self.features(x, step), self.loss_weight
        )

    def logits(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tensor:
        """What the classifier says. See :class:`Auxiliary`."""
        if not self.reads_pooled:
            return super().logits(x, levels, step)
        return step.logits(self.head, self.head.backbone, self.features(x, step))

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """Compare the head's classes with the model's, and run it once on small maps."""
        check_own_head(self.head, self.level_channels, model, source)
