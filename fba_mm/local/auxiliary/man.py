"""MAN and MAN++: a module learns through an averaged copy of a block that follows it."""
from dataclasses import replace
from typing import Dict, Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...errors import LocalLearningError
from ..local_step import LocalStep
from ..partition import CutPoint
from ..partition.cut_point import same
from ..kept_state import unchanged_state
from ..task_loss import AnsweringBackbone, Losses
from .base import Auxiliary
from .classification import ClassificationAuxiliary


class _ThroughLaterBlock(Auxiliary):
    """What MAN and MAN++ share: the averaged copy of a later block, and the host behind it.

    The copy's weights are parameters without gradients: they are written to checkpoints and moved
    between devices with the rest, and optimizers and gradient clipping pass over them.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        index: Which of the later blocks is copied, from 0.
        host: Config of the auxiliary network that learns from the block's output.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: Share of the average that is kept in an iteration.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.
    """

    def __init__(self, cut_point: CutPoint, index: int, host: dict, num_classes: Optional[int],
                 momentum: float, loss_weight: float, init_cfg: Optional[dict]):
        super().__init__(cut_point, loss_weight, init_cfg)
        if not 0 <= momentum <= 1:
            raise LocalLearningError(f'auxiliary.momentum={momentum}: give 0 to 1, as in 0.995')
        self.momentum = momentum
        later = cut_point.later[index:]
        if not later:
            raise LocalLearningError(
                'no block follows that could be copied: give a host that learns from a map, as in '
                "host=dict(type='DGL')")
        block = later[0]
        if block.path is None:
            raise LocalLearningError(
                f'{block.name} cannot be copied, it is no submodule of its own in the backbone: '
                f'take the host alone, auxiliary={host}, or another num_modules')
        self.path = block.path
        self.averaged = self._copy().requires_grad_(False)
        # Saved: a resumed average goes on, and does not start again from the block.
        self.register_buffer('updates', torch.zeros((), dtype=torch.long))
        self.host = self._build_host(
            host, num_classes,
            replace(
                cut_point,
                channels=block.channels,
                stride=block.stride,
                stage=block.stage,
                later=later[1:],
                as_map=same))
        self.reads_pooled = self.host.reads_pooled

    def _copy(self) -> nn.Module:
        block = self.cut_point.copy_block(self.path)
        # Two blocks may read one map: the first must not write into it.
        for module in block.modules():
            if hasattr(module, 'inplace'):
                module.inplace = False
        return block

    def _build_host(self, host: dict, num_classes: Optional[int], cut_point: CutPoint) -> Auxiliary:
        if not isinstance(host, dict) or 'type' not in host:
            raise LocalLearningError(
                f"auxiliary.host={host}: give the config of an auxiliary network, as in "
                "host=dict(type='DGL')")
        host = dict(host, loss_weight=self.loss_weight * host.get('loss_weight', 1.))
        kind = MODELS.get(host['type']) if isinstance(host['type'], str) else host['type']
        if isinstance(kind, type) and issubclass(kind, ClassificationAuxiliary):
            host.setdefault('num_classes', num_classes)
            if host['num_classes'] is None:
                raise LocalLearningError(
                    "auxiliary.num_classes is missing: give that of the model's head beside "
                    f"host=dict(type='{host['type']}')")
        return MODELS.build(host, default_args=dict(cut_point=cut_point))

    def _live(self, step: LocalStep) -> nn.Module:
        return step.source.backbone.get_submodule(self.path)

    @torch.no_grad()
    def _update(self, live: nn.Module) -> None:
        """One step of the average towards the block that is trained."""
        first = self.updates == 0
        self.updates += 1
        # The first step copies: weights were initialized or loaded after this was built. As a
        # tensor, so that the device isn't waited for.
        share = torch.where(first, 1., 1. - self.momentum)
        self._blend(self.averaged, live, share)
        for own, other in zip(self.averaged.buffers(), live.buffers()):
            if own.is_floating_point():
                own.lerp_(other, share.to(own.dtype))
            else:
                own.copy_(other)
        # A norm that the backbone keeps in evaluation mode works so in the copy.
        for own, other in zip(self.averaged.modules(), live.modules()):
            own.training = other.training

    @staticmethod
    def _blend(block: nn.Module, live: nn.Module, share: Tensor) -> None:
        for own, other in zip(block.parameters(), live.parameters()):
            own.lerp_(other.to(own.dtype), share.to(own.dtype))

    def _through_averaged(self, x: Tensor) -> Tensor:
        # Its running statistics are averages of the block's, not those of this pass.
        with unchanged_state(self.averaged):
            return self.cut_point.as_map(self.averaged(x))

    follows_next_module = True

    def check_apart(self) -> None:
        """See :class:`Auxiliary`."""
        raise LocalLearningError(
            f'{type(self).__name__} follows the weights of the next module\'s block, which another '
            "process has: set model_wrapper_cfg.type='LocalDataParallel', or take another "
            'auxiliary network')

    def check(self, model: nn.Module, source: AnsweringBackbone) -> None:
        """What the host can't serve, this can't either."""
        self.host.check(model, source)

    def check_bank(self, scope: str) -> None:
        """What the host can't serve, this can't either."""
        self.host.check_bank(scope)

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`Auxiliary`."""
        self.host.observe(features, step)


@MODELS.register_module()
class MAN(_ThroughLaterBlock):
    """Momentum auxiliary network: y = E(x) + b, and any other method learns from y.

    A module sees a little of what the next one learns. E is the first block of the next module,
    with weights that follow that block's as an exponential moving average: before each iteration's
    loss, E ← m · E + (1 - m) · block; the first iteration copies. No gradient reaches E's weights;
    it passes through E to the module. b is a bias per channel, learned, starting at 0, that makes
    up for what the average lags behind.

    Where the block's batch norm trains, E normalizes with the batch's statistics, as the block
    does, and leaves its running ones alone. These are averaged like weights, and used where the
    backbone keeps its norms in evaluation mode.

    Source: Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024.
    Settled here: the first step, and what batch norm does.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        host: Config of the auxiliary network that learns from y; its place is behind the block.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: m.
        loss_weight: Factor of the module's losses, times that of the host.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``momentum`` is not in 0 to 1, the host has no type or lacks
            ``num_classes``, the next block is no submodule of its own; and what the host raises.

    Example:
        >>> auxiliary = dict(type='MAN', host=dict(type='DGL'), num_classes=10)
        >>> auxiliary = dict(type='MAN', host=dict(type='SLM'))     # any task
    """

    def __init__(self,
                 cut_point: CutPoint,
                 host: dict = dict(type='DGL'),
                 num_classes: Optional[int] = None,
                 momentum: float = .995,
                 loss_weight: float = 1.0,
                 init_cfg: Optional[dict] = None):
        super().__init__(cut_point, 0, host, num_classes, momentum, loss_weight, init_cfg)
        self.bias = nn.Parameter(torch.zeros(self.host.cut_point.channels, 1, 1))

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The host's losses on E(x) + b. See :class:`Auxiliary`."""
        self._update(self._live(step))
        return self.host.loss(self._through_averaged(x) + self.bias, levels, step)


@MODELS.register_module(name='MAN++')
class MANPlusPlus(_ThroughLaterBlock):
    """MAN++: y = s · L(x) + (2 - s) · E(x), and a light head learns from y.

    L and E have the shape of the next stage's first block (in the last stage, of the next block).
    L is this auxiliary network's own and is trained with it; E follows the block itself as in
    :class:`MAN`, and only passes gradients on. s is a learned number that starts at 1 and shares
    the sum out between the two.

    Source: Su et al., "MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in
    Vision Tasks", TPAMI 2026. Settled here: L starts as a copy of the block in the first iteration,
    as E does, and its batch norm is its own; in the last stage the next block takes part; biases of
    MAN's kind are left out.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        host: Config of the auxiliary network that learns from y; its place is behind the block.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: Share of E that is kept in an iteration.
        loss_weight: Factor of the module's losses, times that of the host.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: See :class:`MAN`.

    Example:
        >>> auxiliary = dict(type='MAN++', num_classes=1000)
    """

    def __init__(self,
                 cut_point: CutPoint,
                 host: dict = dict(type='Greedy'),
                 num_classes: Optional[int] = None,
                 momentum: float = .995,
                 loss_weight: float = 1.0,
                 init_cfg: Optional[dict] = None):
        deeper = (i for i, block in enumerate(cut_point.later) if block.stage > cut_point.stage)
        super().__init__(
            cut_point, next(deeper, 0), host, num_classes, momentum, loss_weight, init_cfg)
        # Also where the block itself is frozen.
        self.learned = self._copy().requires_grad_(True)
        self.share = nn.Parameter(torch.ones(()))

    def _update(self, live: nn.Module) -> None:
        with torch.no_grad():
            self._blend(self.learned, live, (self.updates == 0).float())
        super()._update(live)

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The host's losses on the two blocks' sum. See :class:`Auxiliary`."""
        self._update(self._live(step))
        own = self.cut_point.as_map(self.learned(x))
        y = self.share * own + (2 - self.share) * self._through_averaged(x)
        return self.host.loss(y, levels, step)
