"""FBA's auxiliary network: a simple local module (SLM), the feature bank, and the task's head."""

from dataclasses import replace
from functools import partial
from typing import Dict, Optional, Set, Tuple

import torch
from mmengine.model import ModuleDict, ModuleList, Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import check_count, check_number
from ...config import type_name
from ...errors import LocalLearningError
from ..bank_use import BankUse, build_bank_use
from ..level_reads import levels_read
from ..local_step import LocalStep
from ..partition import CutPoint, StageMap
from ..partition.cut_point import same
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary
from .own_head import block_channels, build_own_head, check_own_head


class PooledShortcut(nn.Module):
    """A block that learns nothing: pools a map, and adds channels or averages some.

    Args:
        out_channels: Channels of the result. Those that the map lacks are zeros; those beyond are
            averaged with the first ones, so that a module learns with all of its channels.
        stride: Positions of the map, in height and in width, that become one.
    """

    def __init__(self, out_channels: int, stride: int):
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        groups = [
            F.pad(group, (0, 0, 0, 0, 0, self.out_channels - group.size(1)))
            for group in x.split(self.out_channels, 1)
        ]
        return groups[0] if len(groups) == 1 else torch.stack(groups).mean(0)


def blank_map(stage: StageMap, x: Tensor, step: LocalStep) -> Tensor:
    """A stage's map where the bank doesn't know it: zeros, which take no memory.

    Args:
        stage: The stage.
        x: The module's output, for the number of images and the type.
        step: The batch.
    """
    if stage.pooled:
        return x.new_zeros(()).expand(len(x), stage.channels)
    height, width = (-(-size // stage.stride) for size in step.images.shape[-2:])
    return x.new_zeros(()).expand(len(x), stage.channels, height, width)


@MODELS.register_module()
class SLM(Auxiliary):
    """Completes a module to a small backbone: reduced blocks for each deeper stage.

    This is FBA's auxiliary network by an earlier draft of the paper; :class:`StageTail` is that of
    the current one. The maps that the task's neck and head expect are put together (equations 3 and
    5) from three sources: shallower levels from the feature bank, the module's own level from the
    module, deeper levels from the SLM's blocks. With ``scope='all'`` the bank also knows the deeper
    levels: they are added to the SLM's maps for a random half of the images. For the other half the
    module answers alone, so that the bank cannot starve it of gradient.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        channels: Channels of the blocks' outputs. Unset, those of a light head, and otherwise those
            of the backbone's stages, which the model's own neck needs.
        head: None shares the model's own neck and head with the module. Otherwise the config of
            a model without a backbone (``dict(type='RetinaNet', neck=..., bbox_head=...,
            train_cfg=...)``), which becomes this module's own, usually lighter, neck and head.
            Its ``neck.in_channels`` is filled in. ``dict(type='LightRetinaNet', num_classes=80)``
            is one.
        blocks_per_stage: Blocks for each deeper stage; the draft has one. With 0, as
            :func:`localize` has it for detectors, nothing is learned between the module and the
            head: deeper maps are the module's own, pooled, with zeros for the channels that they
            have more (the parameter-free shortcut of He et al., "Deep Residual Learning for Image
            Recognition", CVPR 2016).
        finish_stage: Where the module's own stage goes on after it, give it one block too. Without,
            a module in the last stage learns from the head alone.
        bank_use: Config of a :class:`BankUse`, for classifiers; ``projects/bank_uses`` has some.
            Unset, the bank gives maps alone.
        bank_dropout: Share of the images for which deeper maps of the bank are withheld.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: The network makes images, ``blocks_per_stage`` is no number from 0, or 0
            on a backbone whose blocks pass on no maps, ``channels`` without ``head``, a ``head``
            with a backbone of its own, or one that does not fit the module's maps or the model's
            classes.

    Example:
        >>> auxiliary = dict(type='SLM')                   # shared head
        >>> auxiliary = dict(type='SLM', channels=64, head=dict(
        ...     type='RetinaNet', neck=dict(type='FPN', out_channels=64, num_outs=5),
        ...     bbox_head=dict(type='RetinaHead', in_channels=64, feat_channels=64,
        ...                    stacked_convs=1, num_classes=80)))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        channels: Optional[int] = None,
        head: Optional[dict] = None,
        blocks_per_stage: int = 1,
        finish_stage: bool = False,
        bank_use: Optional[dict] = None,
        bank_dropout: float = 0.5,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        if cut_point.reduced_head is not None:
            raise LocalLearningError(
                'SLM completes the maps that a neck and head expect, and this network makes '
                "images: take auxiliary=dict(type='SLMReconstruction')"
            )
        check_number('auxiliary.bank_dropout', bank_dropout, least=0, most=1)
        if channels is not None and head is None:
            raise LocalLearningError(
                f"auxiliary.channels={channels} does not fit the model's own neck, which expects "
                'the channels of the backbone: leave channels unset, or give a head'
            )
        check_count('auxiliary.blocks_per_stage', blocks_per_stage, least=0)
        if channels is not None:
            check_count('auxiliary.channels', channels)
        if blocks_per_stage == 0 and cut_point.as_map is not same:
            raise LocalLearningError(
                'auxiliary.blocks_per_stage=0 pools maps, and the blocks of this backbone pass on '
                'tokens: give 1 or more'
            )
        if channels is None and head is not None:
            channels = block_channels(head)
        self.bank_dropout = bank_dropout
        self.blocks = ModuleList()
        # What the backbone does to a level before it returns it, in a small form of the SLM's own.
        self.outputs = ModuleDict()
        self.level_channels = []
        in_channels, in_stride = cut_point.channels, cut_point.stride
        self.finish: Optional[nn.Module] = None
        if finish_stage and any(block.stage == cut_point.stage for block in cut_point.later):
            dilation = next((s.dilation for s in cut_point.stages if s.stage == cut_point.stage), 1)
            self.finish = self._stage(in_channels, in_channels, 1, 1, dilation)
        for stage in cut_point.stages:
            out_channels = stage.channels
            if stage.stage > cut_point.stage:
                out_channels = channels or stage.channels
                stride = max(stage.stride // in_stride, 1)
                self.blocks.append(
                    self._stage(in_channels, out_channels, stride, blocks_per_stage, stage.dilation)
                )
                in_channels, in_stride = out_channels, stage.stride
            if stage.level is not None:
                self.level_channels.append(out_channels)
                if cut_point.reduced_output is not None and self._makes(stage):
                    self.outputs[str(stage.level)] = cut_point.reduced_output(
                        stage.level, out_channels
                    )
        self._head_type = None if head is None else type_name(head.get('type'))
        self.head = (
            None
            if head is None
            else build_own_head(
                head,
                self.level_channels,
                [stage.stride for stage in cut_point.levels],
                [s.level for s in cut_point.levels if s.level not in cut_point.earlier_levels],
            )
        )
        self.bank_use: Optional[BankUse] = None
        if bank_use is not None:
            self.bank_use = build_bank_use(bank_use, cut_point)
            self.reads_pooled = self.bank_use.reads_pooled

    def _stage(
        self, in_channels: int, out_channels: int, stride: int, blocks: int, dilation: int
    ) -> nn.Module:
        if not blocks:
            return PooledShortcut(out_channels, stride)
        block = self.cut_point.reduced_block
        if dilation != 1:
            block = partial(block, dilation=dilation)
        first = block(in_channels, out_channels, stride)
        more = [block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
        return Sequential(first, *more) if more else first

    def _makes(self, stage: StageMap) -> bool:
        """Whether a stage's level is of the SLM's making: its stage goes on after the module.

        Or nothing does, behind MAN's copy of the backbone's last block.
        """
        later = self.cut_point.later
        if not later:
            return stage.stage == self.cut_point.stage
        return any(block.stage == stage.stage for block in later)

    def _returned(self, x: Tensor, level: int) -> Tensor:
        key = str(level)
        return self.outputs[key](x) if key in self.outputs else x

    def features(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tuple[Tensor, ...]:
        """The maps of a whole backbone, as far as the module can tell them.

        Args:
            x: Output of the module, (N, C, H, W).
            levels: The module's own levels, by index.
            step: The batch and the bank.

        Returns:
            One map for each level that the backbone returns, (N, C, H, W).
        """
        maps = dict(levels)
        blocks = iter(self.blocks)
        if self.finish is not None:
            x = self.finish(x)
        deeper = x
        # Drawn once: an image's deeper maps are withheld at all levels or at none.
        offered = torch.rand(len(x), 1, 1, 1, generator=step.generator) >= self.bank_dropout
        offered = offered.to(x.device, non_blocking=True)
        for stage in self.cut_point.stages:
            level = stage.level
            banked = None if level is None else step.bank.get(level)
            if stage.stage > self.cut_point.stage:
                deeper = next(blocks)(deeper)
                if level is not None:
                    own = self._returned(deeper, level)
                    # With a use of its own, the bank is not mixed in here too.
                    maps[level] = own if self.bank_use else self._with_context(own, banked, offered)
            elif level is not None and level not in maps:
                if stage.stage == self.cut_point.stage:
                    maps[level] = self._returned(x, level)
                else:
                    maps[level] = blank_map(stage, x, step) if banked is None else banked
        return tuple(maps[level] for level in sorted(maps))

    @staticmethod
    def _with_context(own: Tensor, banked: Optional[Tensor], offered: Tensor) -> Tensor:
        if banked is None or banked.shape != own.shape:
            return own
        offered = offered.reshape(-1, *[1] * (own.dim() - 1))
        return own + banked.to(own.dtype) * offered

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The task's losses on the completed features. See :class:`Auxiliary`."""
        own = features = self.features(x, levels, step)
        head, source = (
            (step.model, step.source) if self.head is None else (self.head, self.head.backbone)
        )
        if self.bank_use is not None:
            features = self.bank_use.enrich(own, step)
        losses = step.head_loss(head, source, features, self.loss_weight)
        if self.bank_use is not None:
            loss = self.bank_use.loss(own, head, source, step)
            if loss is not None:
                losses = dict(losses, loss_bank=loss * self.loss_weight)
        return losses

    def logits(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Tensor:
        """What the classifier says of the completed features. See :class:`Auxiliary`."""
        head, source = (
            (step.model, step.source) if self.head is None else (self.head, self.head.backbone)
        )
        if not hasattr(head, 'head'):
            return super().logits(x, levels, step)
        features = self.features(x, levels, step)
        if self.bank_use is not None:
            features = self.bank_use.enrich(features, step)
        return step.logits(head, source, features)

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`Auxiliary`."""
        if self.bank_use is not None:
            self.bank_use.observe(features, step)

    def describe(self) -> str:
        """See :class:`Auxiliary`."""
        own = super().describe()
        if self.head is not None:
            return f'{own}, {self._head_type} among them'
        return f"{own}, before the model's own head"

    def levels_read(self, model: nn.Module, source: StubbableBackbone) -> Set[int]:
        """See :class:`Auxiliary`."""
        if self.bank_use is not None:
            return super().levels_read(model, source)
        if self.head is None:
            return levels_read(model, source, self.cut_point.levels)
        levels = [
            replace(stage, channels=channels)
            for stage, channels in zip(self.cut_point.levels, self.level_channels)
        ]
        return levels_read(self.head, self.head.backbone, levels)

    def check_bank(self, scope: str) -> None:
        """See :class:`Auxiliary`."""
        if self.bank_use is not None:
            self.bank_use.check_bank(scope)

    def check_module_parallel(self) -> None:
        """See :class:`Auxiliary`."""
        if self.head is None:
            raise LocalLearningError(
                "all modules train the model's own neck and head, which one process alone can "
                "hold: give modules a head each, auxiliary=dict(type='SLM', head=dict(...)), or "
                "set model_wrapper_cfg.type='LocalDataParallel'"
            )
        if self.bank_use is not None:
            self.bank_use.check_module_parallel()

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """Compare the classes of an own head with the model's, and run it once on small maps."""
        if self.bank_use is not None:
            self.bank_use.check(model)
        if self.head is not None:
            check_own_head(self.head, self.level_channels, model, source)
