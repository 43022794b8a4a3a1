"""MAN and MAN++: a module learns through copies of the block that follows it."""

from abc import abstractmethod
from dataclasses import replace
from typing import Dict, Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_count, check_number
from ...errors import LocalLearningError
from ..kept_state import unchanged_state
from ..local_step import LocalStep
from ..partition import CutPoint
from ..partition.cut_point import same
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary
from .classification import ClassificationAuxiliary, draw_linear_of_tokens


class _ThroughNextBlock(Auxiliary):
    """What MAN and MAN++ share: two copies of the block that follows the module, and a host.

    L is learned. E is an exponential moving average of the block itself: its weights are parameters
    without gradients, which are written to checkpoints and moved between devices with the rest, and
    which optimizers and gradient clipping skip. Both start from weights of their own.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        host: Config of the auxiliary network that learns from the blocks' output.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: Share of E that is kept in an iteration.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.
        blocks: Blocks between the module and the host; those behind the first are learned alone.
    """

    def __init__(
        self,
        cut_point: CutPoint,
        host: dict,
        num_classes: Optional[int],
        momentum: float,
        loss_weight: float,
        init_cfg: Optional[dict],
        blocks: int = 1,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        self.momentum = check_number(
            'auxiliary.momentum', momentum, least=0, most=1, fix=', as in 0.995'
        )
        if not cut_point.later:
            raise LocalLearningError(
                'no block follows that could be copied: give a host that learns from a map, as in '
                "host=dict(type='DGL')"
            )
        check_count('auxiliary.blocks', blocks, what='a number of blocks')
        copied = cut_point.later[:blocks]
        if len(copied) < blocks:
            raise LocalLearningError(
                f'auxiliary.blocks={blocks}, and {len(copied)} follow module '
                f'{cut_point.module + 1}: give fewer, or end the module before it earlier'
            )
        for block in copied:
            if block.path is None:
                raise LocalLearningError(
                    f'{block.name} cannot be copied, it is no submodule of its own in the '
                    f'backbone: take the host alone, auxiliary={host}, or another num_modules'
                )
        self.paths = tuple(str(block.path) for block in copied)
        self.averaged = self._copy(self.paths[0]).requires_grad_(False)
        # Also where the block itself is frozen.
        self.learned = self._copy(self.paths[0]).requires_grad_(True)
        self.further = nn.ModuleList(
            self._copy(path).requires_grad_(True) for path in self.paths[1:]
        )
        last = copied[-1]
        self.host = self._build_host(
            host,
            num_classes,
            replace(
                cut_point,
                channels=last.channels,
                stride=last.stride,
                stage=last.stage,
                block=cut_point.block + blocks,
                later=cut_point.later[blocks:],
            ),
        )
        self.reads_pooled = self.host.reads_pooled

    def init_weights(self) -> None:
        """Draw the weights of both copies, each its own."""
        if self.is_init:
            return
        super().init_weights()
        for block in (self.averaged, self.learned, self.further):
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
                elif isinstance(module, nn.Linear) and self.cut_point.as_map is not same:
                    draw_linear_of_tokens(module)
                elif hasattr(module, 'reset_parameters'):
                    module.reset_parameters()

    def _copy(self, path: str) -> nn.Module:
        block = self.cut_point.copy_block(path)
        # Two blocks may read one map: the first must not write into it.
        for module in block.modules():
            if hasattr(module, 'inplace'):
                module.inplace = False
        return block

    def _build_host(self, host: dict, num_classes: Optional[int], cut_point: CutPoint) -> Auxiliary:
        if not isinstance(host, dict) or 'type' not in host:
            raise LocalLearningError(
                f'auxiliary.host={host}: give the config of an auxiliary network, as in '
                "host=dict(type='DGL')"
            )
        host = dict(host, loss_weight=self.loss_weight * host.get('loss_weight', 1.0))
        kind = MODELS.get(host['type']) if isinstance(host['type'], str) else host['type']
        if isinstance(kind, type) and issubclass(kind, ClassificationAuxiliary):
            host.setdefault('num_classes', num_classes)
            if host['num_classes'] is None:
                raise LocalLearningError(
                    "auxiliary.num_classes is missing: give that of the model's head beside "
                    f"host=dict(type='{host['type']}')"
                )
        return MODELS.build(host, default_args=dict(cut_point=cut_point))

    def _live(self, step: LocalStep, index: int = 0) -> nn.Module:
        return step.source.backbone.get_submodule(self.paths[index])

    @torch.no_grad()
    def after_backward(self, step: LocalStep) -> None:
        """One step of the average towards the block, as it is before this iteration trains it."""
        share, live = 1 - self.momentum, self._live(step)
        for own, other in zip(self.averaged.parameters(), live.parameters()):
            own.lerp_(other.to(own.dtype), share)
        for own, other in zip(self.averaged.buffers(), live.buffers()):
            if own.is_floating_point():
                own.lerp_(other, share)
            else:
                own.copy_(other)
        self.host.after_backward(step)

    def _outputs(self, x: Tensor, step: LocalStep) -> Tuple[Tensor, Tensor]:
        """L(x) and E(x), in the form that the backbone passes on."""
        live = self._live(step)
        for block in (self.learned, self.averaged):
            _follow_modes(block, live)
        learned = self.learned(x)
        # E's running statistics are averages of the block's, not those of this pass.
        with unchanged_state(self.averaged):
            averaged = self.averaged(x)
        return learned, averaged

    def _seen(self, x: Tensor, step: LocalStep) -> Tensor:
        """What the host sees."""
        y = self._combined(x, step)
        for index, block in enumerate(self.further, start=1):
            _follow_modes(block, self._live(step, index))
            y = block(y)
        return y

    @abstractmethod
    def _combined(self, x: Tensor, step: LocalStep) -> Tensor:
        """What the two blocks make together."""

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The host's losses on the two blocks' outputs. See :class:`Auxiliary`."""
        return self.host.loss(self._seen(x, step), levels, step)

    def logits(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tensor:
        """The host's. See :class:`Auxiliary`."""
        return self.host.logits(self._seen(x, step), levels, step)

    follows_next_module = True

    @property
    def shares_head(self) -> bool:
        """See :class:`Auxiliary`."""
        return self.host.shares_head

    def check_module_parallel(self) -> None:
        """See :class:`Auxiliary`."""
        raise LocalLearningError(
            f"{type(self).__name__} follows the weights of the next module's block, which another "
            "process has: set model_wrapper_cfg.type='LocalDataParallel', or take another "
            'auxiliary network'
        )

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """What the host can't serve, this can't either."""
        self.host.check(model, source)

    def check_bank(self, scope: str) -> None:
        """What the host can't serve, this can't either."""
        self.host.check_bank(scope)

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`Auxiliary`."""
        self.host.observe(features, step)


def _follow_modes(block: nn.Module, live: nn.Module) -> None:
    """Let a copy work as its block: a norm that the backbone keeps in evaluation mode, say."""
    for own, other in zip(block.modules(), live.modules()):
        own.training = other.training


@MODELS.register_module()
class MAN(_ThroughNextBlock):
    """Momentum auxiliary network: y = L(x) + E(x), and any other method learns from y.

    A module sees a little of what the next one learns. E and L have the shape of the next module's
    first block. E's weights follow that block's as an exponential moving average: after each loss,
    E ← m · E + (1 - m) · block. No gradient reaches them; it passes through E to the module. L is
    this auxiliary network's own and is trained with it.

    Where the block's batch norm trains, E normalizes with the batch's statistics, as the block
    does, and leaves its running ones alone. These are averaged like weights, and used where the
    backbone keeps its norms in evaluation mode.

    Source: Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024, and
    the code released with it (the paper writes L as a learnable bias). There, the stem and the
    first block are one module: ``num_modules=[2] + [1] * 14`` for a ResNet-32. Settled here:
    what batch norm does in evaluation mode.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        host: Config of the auxiliary network that learns from y; its place is behind the block. The
            authors' is InfoPro with weights that fall with the stage of the block:
            ``configs/_base_/methods/man.py``.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: m.
        loss_weight: Factor of the module's losses, times that of the host.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``momentum`` is not in 0 to 1, the host has no type or lacks
            ``num_classes``, the next block is no submodule of its own; and what the host raises.

    Example:
        >>> auxiliary = dict(type='MAN', host=dict(type='InfoPro'), num_classes=10)
        >>> auxiliary = dict(type='MAN', host=dict(type='SLM'))     # any task
    """

    def __init__(
        self,
        cut_point: CutPoint,
        host: dict = dict(type='InfoPro'),
        num_classes: Optional[int] = None,
        momentum: float = 0.995,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, host, num_classes, momentum, loss_weight, init_cfg)

    def _combined(self, x: Tensor, step: LocalStep) -> Tensor:
        learned, averaged = self._outputs(x, step)
        return learned + averaged


@MODELS.register_module(name='MAN++')
class MANPlusPlus(_ThroughNextBlock):
    """MAN++: y = s · L(x) + (2 - s) · E(x), and any other method learns from y.

    As :class:`MAN`, with a learned number s that starts at 1 and shares the sum out between the
    two. For Vision Transformers a copy of the block behind the next one, learned alone, and the
    network's own norm, class token and classifier follow: ``blocks=2, host=dict(type='Readout')``.

    Source: Su et al., "MAN++: Scaling Momentum Auxiliary Network for Supervised Local Learning in
    Vision Tasks", TPAMI 2026, and the code released with it.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        host: Config of the auxiliary network that learns from y; its place is behind the block. The
            default is the authors' on CIFAR beside InfoPro.
        num_classes: Classes of the data set, for hosts that classify.
        momentum: Share of E that is kept in an iteration.
        blocks: Copied blocks between the module and the host: the first is the sum above, and those
            behind it are learned alone.
        loss_weight: Factor of the module's losses, times that of the host.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: Fewer than ``blocks`` follow; and see :class:`MAN`.

    Example:
        >>> auxiliary = dict(type='MAN++', num_classes=1000)
        >>> auxiliary = dict(type='MAN++', num_classes=1000, blocks=2, host=dict(type='Readout'))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        host: dict = dict(
            type='DGL', width=128, positions=1, hidden_layers=3, hidden_width=512, hidden_bias=True
        ),
        num_classes: Optional[int] = None,
        momentum: float = 0.995,
        blocks: int = 1,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, host, num_classes, momentum, loss_weight, init_cfg, blocks)
        self.share = nn.Parameter(torch.ones(()))

    def _combined(self, x: Tensor, step: LocalStep) -> Tensor:
        learned, averaged = self._outputs(x, step)
        return self.share * learned + (2 - self.share) * averaged
