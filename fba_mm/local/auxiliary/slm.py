"""FBA's auxiliary network: a simple local module (SLM), the feature bank, and the task's head."""
from inspect import signature
from typing import Dict, Optional, Tuple

import torch
from mmengine.model import ModuleDict, ModuleList, Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...errors import LocalLearningError
from ..bank_use import BankUse
from ..local_step import LocalStep
from ..partition import CutPoint, StageMap
from ..task_loss import AnsweringBackbone, Losses
from .base import Auxiliary, num_classes_of


@MODELS.register_module()
class SLM(Auxiliary):
    """Completes a module to a small backbone: reduced blocks for each deeper stage.

    The maps that the task's neck and head expect are put together (FBA paper, equations 2, 3
    and 5) from three sources: shallower levels from the feature bank, the module's own level from
    the module, deeper levels from the SLM's blocks. With ``scope='all'`` the bank also knows the
    deeper levels: they are added to the SLM's maps for a random half of the images. For the other
    half the module answers alone, so that the bank cannot starve it of gradient.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        channels: Channels of the blocks' outputs. Unset, those of the backbone's stages, which
            the model's own neck needs.
        head: None shares the model's own neck and head with the module. Otherwise the config of
            a model without a backbone (``dict(type='RetinaNet', neck=..., bbox_head=...,
            train_cfg=...)``), which becomes this module's own, usually lighter, neck and head.
            Its ``neck.in_channels`` is filled in. ``dict(type='LightRetinaNet', num_classes=80)``
            is one.
        blocks_per_stage: Blocks for each deeper stage; the paper has one.
        finish_stage: Where the module's own stage goes on after it, give it one block too. Without,
            a module in the last stage learns from the head alone.
        bank_use: Config of a :class:`BankUse`, for classifiers: ``dict(type='ClassMemory',
            num_classes=10)``. Unset, the bank gives maps alone.
        image_share: Share of the batch that the SLM and its head see in an iteration, drawn anew
            for each module. The loss is that of the whole batch in expectation, at this share of
            the auxiliary network's cost.
        bank_dropout: Share of the images for which deeper maps of the bank are withheld.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: The network makes images, ``blocks_per_stage`` is no number from 1,
            ``channels`` without ``head``, a ``head`` with a backbone of its own, or one that does
            not fit the module's maps or the model's classes.

    Example:
        >>> auxiliary = dict(type='SLM')                   # shared head
        >>> auxiliary = dict(type='SLM', channels=64, head=dict(
        ...     type='RetinaNet', neck=dict(type='FPN', out_channels=64, num_outs=5),
        ...     bbox_head=dict(type='RetinaHead', in_channels=64, feat_channels=64,
        ...                    stacked_convs=1, num_classes=80)))
    """

    def __init__(self,
                 cut_point: CutPoint,
                 channels: Optional[int] = None,
                 head: Optional[dict] = None,
                 blocks_per_stage: int = 1,
                 finish_stage: bool = False,
                 bank_use: Optional[dict] = None,
                 image_share: float = 1.0,
                 bank_dropout: float = 0.5,
                 loss_weight: float = 1.0,
                 init_cfg: Optional[dict] = None):
        super().__init__(cut_point, loss_weight, init_cfg)
        if cut_point.reduced_head is not None:
            raise LocalLearningError(
                'SLM completes the maps that a neck and head expect, and this network makes '
                "images: take auxiliary=dict(type='SLMReconstruction')")
        if not 0 <= bank_dropout <= 1:
            raise LocalLearningError(f'auxiliary.bank_dropout={bank_dropout}: give 0 to 1')
        if channels is not None and head is None:
            raise LocalLearningError(
                f'auxiliary.channels={channels} does not fit the model\'s own neck, which expects '
                'the channels of the backbone: leave channels unset, or give a head')
        if isinstance(blocks_per_stage, bool) or not isinstance(
                blocks_per_stage, int) or blocks_per_stage < 1:
            raise LocalLearningError(
                f'auxiliary.blocks_per_stage={blocks_per_stage!r}: give a number from 1')
        if not 0 < image_share <= 1:
            raise LocalLearningError(
                f'auxiliary.image_share={image_share}: give more than 0, up to 1')
        self.image_share = image_share
        self.bank_dropout = bank_dropout
        self.blocks = ModuleList()
        # What the backbone does to a level before it returns it, in a small form of the SLM's own.
        self.outputs = ModuleDict()
        self.level_channels = []
        in_channels, in_stride = cut_point.channels, cut_point.stride
        self.finish: Optional[nn.Module] = None
        if finish_stage and any(block.stage == cut_point.stage for block in cut_point.later):
            self.finish = cut_point.reduced_block(in_channels, in_channels, 1)
        for stage in cut_point.stages:
            out_channels = stage.channels
            if stage.stage > cut_point.stage:
                out_channels = channels or stage.channels
                stride = max(stage.stride // in_stride, 1)
                first = cut_point.reduced_block(in_channels, out_channels, stride)
                more = [cut_point.reduced_block(out_channels, out_channels, 1)
                        for _ in range(blocks_per_stage - 1)]
                self.blocks.append(Sequential(first, *more) if more else first)
                in_channels, in_stride = out_channels, stage.stride
            if stage.level is not None:
                self.level_channels.append(out_channels)
                if cut_point.reduced_output is not None and self._makes(stage):
                    self.outputs[str(stage.level)] = cut_point.reduced_output(
                        stage.level, out_channels)
        self.head = None if head is None else self._build_head(head)
        self.bank_use: Optional[BankUse] = None
        if bank_use is not None:
            self.bank_use = MODELS.build(dict(bank_use), default_args=dict(cut_point=cut_point))
            self.reads_pooled = self.bank_use.reads_pooled
            if image_share < 1:
                raise LocalLearningError(
                    f'auxiliary.image_share={image_share} does not go with bank_use: leave out one')

    def _build_head(self, head: dict) -> nn.Module:
        if 'type' not in head:
            raise LocalLearningError(
                'auxiliary.head has no type: give the config of a model without a backbone, '
                "such as dict(type='RetinaNet', neck=..., bbox_head=...)")
        if head.get('backbone') is not None:
            raise LocalLearningError(
                'auxiliary.head has a backbone: leave it out, the module is its backbone')
        head = dict(
            head, backbone=dict(type='FeatureSource', channels=list(self.level_channels)))
        # The module's loss is computed on batches that the model has already preprocessed.
        head.pop('data_preprocessor', None)
        neck = head.get('neck')
        if isinstance(neck, dict) and _takes_channels(neck):
            head['neck'] = dict(neck, in_channels=list(self.level_channels))
        try:
            return MODELS.build(head)
        except (TypeError, KeyError, AssertionError, ValueError) as error:
            raise LocalLearningError(
                f'auxiliary.head cannot be built as a {head["type"]}: {error}') from error

    def _makes(self, stage: StageMap) -> bool:
        """Whether a stage's level is of the SLM's making: its stage goes on after the module."""
        return any(block.stage == stage.stage for block in self.cut_point.later)

    def _returned(self, x: Tensor, level: int) -> Tensor:
        key = str(level)
        return self.outputs[key](x) if key in self.outputs else x

    def features(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep,
                 images: slice = slice(None)) -> Tuple[Tensor, ...]:
        """The maps of a whole backbone, as far as the module can tell them.

        Args:
            x: Output of the module, (N, C, H, W).
            levels: The module's own levels, by index.
            step: The batch and the bank.
            images: A slice of the batch.

        Returns:
            One map for each level that the backbone returns, (N, C, H, W) with the slice's images.
        """
        if images != slice(None):
            x = x[images]
            levels = {level: feature[images] for level, feature in levels.items()}
        maps = dict(levels)
        blocks = iter(self.blocks)
        if self.finish is not None:
            x = self.finish(x)
        deeper = x
        # Drawn once: an image's deeper maps are withheld at all levels or at none.
        offered = torch.rand(len(x), 1, 1, 1, generator=step.generator) >= self.bank_dropout
        for stage in self.cut_point.stages:
            level = stage.level
            banked = None if level is None else step.bank.get(level)
            if banked is not None and images != slice(None):
                banked = banked[images]
            if stage.stage > self.cut_point.stage:
                deeper = next(blocks)(deeper)
                if level is not None:
                    own = self._returned(deeper, level)
                    # With a use of its own, the bank is not mixed in here too.
                    maps[level] = own if self.bank_use else self._with_context(
                        own, banked, offered)
            elif level is not None and level not in maps:
                if stage.stage == self.cut_point.stage:
                    maps[level] = self._returned(x, level)
                else:
                    maps[level] = self._blank(stage, x, step) if banked is None else banked
        return tuple(maps[level] for level in sorted(maps))

    @staticmethod
    def _with_context(own: Tensor, banked: Optional[Tensor], offered: Tensor) -> Tensor:
        if banked is None or banked.shape != own.shape:
            return own
        offered = offered.reshape(-1, *[1] * (own.dim() - 1))
        return own + banked.to(own.dtype) * offered.to(banked.device)

    @staticmethod
    def _blank(stage: StageMap, x: Tensor, step: LocalStep) -> Tensor:
        # No bank, no knowledge: zeros, which as an expanded scalar take no memory.
        if stage.pooled:
            return x.new_zeros(()).expand(len(x), stage.channels)
        height, width = (-(-size // stage.stride) for size in step.inputs.shape[-2:])
        return x.new_zeros(()).expand(len(x), stage.channels, height, width)

    def _draw_images(self, step: LocalStep) -> slice:
        total = len(step.data_samples)
        count = max(round(self.image_share * total), 1)
        # Batches are shuffled: neighbours are as good as any.
        start = int(torch.randint(total - count + 1, (), generator=step.generator))
        return slice(start, start + count)

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The task's losses on the completed features. See :class:`Auxiliary`."""
        images = self._draw_images(step) if self.image_share < 1 else slice(None)
        own = features = self.features(x, levels, step, images)
        head, source = (step.model, step.source) if self.head is None else (
            self.head, self.head.backbone)
        if self.bank_use is not None:
            features = self.bank_use.enrich(own, step)
        losses = step.head_loss(head, source, features, self.loss_weight, images)
        if self.bank_use is not None:
            loss = self.bank_use.loss(own, head, source, step)
            if loss is not None:
                losses = dict(losses, loss_bank=loss * self.loss_weight)
        return losses

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`Auxiliary`."""
        if self.bank_use is not None:
            self.bank_use.observe(features, step)

    def check_bank(self, scope: str) -> None:
        """See :class:`Auxiliary`."""
        if self.bank_use is not None:
            self.bank_use.check_bank(scope)

    def check(self, model: nn.Module, source: AnsweringBackbone) -> None:
        """Compare the classes of an own head with the model's, and run it once on small maps."""
        if self.bank_use is not None:
            self.bank_use.check(model)
        if self.head is None:
            return
        own = num_classes_of(self.head)
        main = num_classes_of(model, skip=source)
        if own != main:
            raise LocalLearningError(
                f'auxiliary.head predicts {own} classes, the model {main}: give both the same '
                'num_classes')
        like = next(self.head.parameters())
        maps = tuple(
            like.new_zeros(1, channels, 64 // 2**i, 64 // 2**i)
            for i, channels in enumerate(self.level_channels))
        training = self.head.training
        self.head.eval()
        try:
            with torch.no_grad(), self.head.backbone.answering(maps):
                features = self.head.extract_feat(like.new_zeros(1, 3, 64, 64))
                first = getattr(self.head, 'bbox_head', None) or getattr(
                    self.head, 'rpn_head', None)
                if first is not None:
                    first(features)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise LocalLearningError(
                'auxiliary.head does not fit its own maps '
                f'({str(error).strip().splitlines()[0]}): check in_channels of its heads against '
                'out_channels of its neck') from error
        finally:
            self.head.train(training)


def _takes_channels(neck: dict) -> bool:
    # A classifier's pooling doesn't ask for the channels of its maps.
    kind = neck.get('type')
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return kind is None or 'in_channels' in signature(kind).parameters
