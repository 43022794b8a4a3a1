"""What a module may use while it trains."""

from dataclasses import dataclass, field
from typing import Callable, Dict, FrozenSet, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ..compat.torch_versions import is_autocast_enabled
from ..errors import LocalLearningError
from .assigned_targets import AssignedTargets
from .feature_bank import FeatureBank
from .head_batches import add_losses, can_be_split, feed, is_image_mean, is_known, slices_of
from .kept_state import unchanged_state
from .stage_state import StageState
from .task_loss import Features, Losses, StubbableBackbone, map_losses, task_loss


def _nothing(index: int) -> None:
    pass


class Idle:
    """In the place of a :class:`LocalStep` between the iterations of a training."""


@dataclass
class LocalStep:
    """One training iteration as :class:`LocalBackbone` sees it.

    Attributes:
        model: The model around the backbone, whose neck and head auxiliary networks may share.
        source: The backbone of that model, which can answer with given features.
        inputs: The batch of images after preprocessing, (N, 3, H, W), or mmagic's dict of batches.
        data_samples: The batch's targets, a list, or mmagic's one sample of stacked targets; or a
            tensor of classes, where the loss is a function of torch's.
        bank: Key features of this batch.
        train: ``train(i, losses)`` computes the gradients of module i's losses, now.
        accumulate: ``accumulate(losses)`` computes the gradients of a part of a module's losses,
            now; the module's ``train`` follows. Needed with ``head_batch_size``.
        generator: CPU random generator, seeded for this iteration: what is drawn from it
            does not depend on whether training was interrupted before.
        head_batch_size: Images that a neck and head see at once, where that is exact; None for
            the whole batch.
        asked_for_slices: Whether a user has set that. Otherwise heads of classes that may keep
            something from batch to batch see the whole batch.
        modules_here: The modules that run in this process, from 0; None for all of them.
        received: What the process with the modules before these has made of the batch.
        enter: ``enter(i)`` is called before module i runs.
        unread: Levels of the backbone's output that nothing looks at: their shape is kept alone.
        log: The local losses so far, by the names that the log has for them.
        targets: Targets that heads have assigned in this iteration.
        fed: Losses of the model's own head on the images that :meth:`feed_model` has dealt with.
        expected: The images that losses are to ask features of, once modules have run: those that
            they have run on, or the slice of these that a loss is given.
        kept: Maps that segments of the module now in training keep for later ones, by name,
            attached to its graph. Those of earlier modules are in the bank.
    """

    model: nn.Module
    source: StubbableBackbone
    inputs: Union[Tensor, Dict[str, Tensor]]
    data_samples: list
    bank: FeatureBank
    train: Callable[[int, Losses], None]
    accumulate: Optional[Callable[[Losses], None]] = None
    generator: Optional[torch.Generator] = None
    head_batch_size: Optional[int] = None
    asked_for_slices: bool = True
    modules_here: Optional[range] = None
    received: Optional[StageState] = None
    enter: Callable[[int], None] = _nothing
    unread: FrozenSet[int] = frozenset()
    log: Dict[str, Tensor] = field(default_factory=dict)
    targets: AssignedTargets = field(init=False)
    fed: Losses = field(init=False, default_factory=dict)
    expected: Optional[Tensor] = field(init=False, default=None, repr=False)
    kept: Dict[str, Tensor] = field(init=False, default_factory=dict)
    _labels: Optional[Tensor] = field(init=False, default=None, repr=False)
    _sample_indices: Optional[Tuple[Tensor, int, int]] = field(init=False, default=None, repr=False)
    _network_logits: Optional[Tensor] = field(init=False, default=None, repr=False)

    def __post_init__(self):
        self.targets = AssignedTargets(self.data_samples)

    @property
    def images(self) -> Tensor:
        """The batch of images that the network sees, (N, 3, H, W)."""
        return self.inputs['img'] if isinstance(self.inputs, dict) else self.inputs

    def slices(self, model: nn.Module, source: StubbableBackbone) -> list:
        """The slices of the batch that a model's neck and head see one after the other.

        Args:
            model: This or an auxiliary network's own model.
            source: Its backbone.
        """
        size = (
            self.head_batch_size
            if can_be_split(model, source) and (self.asked_for_slices or is_known(model, source))
            else None
        )
        # A sample of stacked targets has a length of its own making.
        several = isinstance(self.data_samples, (list, tuple))
        return slices_of(len(self.data_samples if several else self.images), size)

    def head_loss(
        self,
        model: nn.Module,
        source: StubbableBackbone,
        features: Features,
        loss_weight: float = 1.0,
    ) -> Losses:
        """The losses of a model's neck and head on given features.

        Args:
            model: A model; only its neck and head are used.
            source: Its backbone, which answers with the features.
            features: As the backbone returns them, (N, C, H, W) each.
            loss_weight: Factor of the losses.
        """

        def loss_of(features: Features, images: Optional[slice]) -> Losses:
            return self._loss_of(model, source, features, images, loss_weight)

        parts = self.slices(model, source)
        if len(parts) == 1:
            return loss_of(features, None)
        rest, fed = feed(features, parts, loss_of, self.accumulate)
        return add_losses(loss_of(rest, parts[-1]), fed)

    def labels(self) -> Tensor:
        """The classes of the images, (N,), or (N, classes) shares where images are mixed.

        Raises:
            LocalLearningError: An image has no class, or several.
        """
        if self._labels is None:
            samples = self.data_samples
            if isinstance(samples, Tensor):
                labels = samples
            elif all('gt_score' in sample for sample in samples):
                labels = torch.stack([sample.gt_score for sample in samples])
            else:
                labels = torch.cat(
                    [sample.get('gt_label', torch.empty(0)).reshape(-1) for sample in samples]
                )
                # One sample may carry the labels of the whole batch.
                alike = len(samples) == 1 or all(
                    len(sample.get('gt_label', ())) == 1 for sample in samples
                )
                if len(labels) != len(self.images) or not alike:
                    raise LocalLearningError(
                        'this auxiliary network needs exactly one class per image: check the data '
                        "set's labels, or take auxiliary=dict(type='SLM'), which learns from the "
                        "model's own head"
                    )
            self._labels = labels.to(self.images.device)
        return self._labels

    def sample_indices(self) -> Tuple[Tensor, int, int]:
        """Which images these are in the data set, (N,), the least number and the greatest.

        An image that doesn't tell is number -1. They are looked at on the CPU, where a dataloader
        leaves them, and copied once in a step.
        """
        if self._sample_indices is None:
            # A number per sample, or all numbers of the batch in one.
            indices = torch.cat(
                [
                    torch.as_tensor(sample.get('sample_idx', -1), device='cpu').reshape(-1)
                    for sample in self.data_samples
                ]
            )
            limits = torch.stack(indices.aminmax()).tolist()
            self._sample_indices = (indices.to(self.images.device, non_blocking=True), *limits)
        return self._sample_indices

    def logits(
        self, model: nn.Module, source: StubbableBackbone, features: Tuple[Tensor, ...]
    ) -> Tensor:
        """What a classifier's neck and head say of given features, (N, classes).

        Args:
            model: A classifier; only its neck and head are used.
            source: Its backbone, which answers with the features.
            features: As the backbone returns them, (N, C, H, W) each.
        """
        with source.answering(features), unchanged_state(model, skip=source):
            return model.head(model.extract_feat(self.inputs))

    def network_logits(self, features: Tuple[Tensor, ...]) -> Tensor:
        """What the model says of its own deepest features, without gradients; computed once.

        Args:
            features: Of the whole network in this iteration.
        """
        if self._network_logits is None:
            # Casts that autocast makes here have no graph, and would be used again with the loss.
            device_type = self.images.device.type
            with torch.no_grad(), torch.autocast(
                device_type, enabled=is_autocast_enabled(device_type), cache_enabled=False
            ):
                self._network_logits = self.logits(self.model, self.source, features)
        return self._network_logits

    def feed_model(
        self, features: Features, parts: List[slice]
    ) -> Tuple[Features, Union[Tensor, Dict[str, Tensor]], list]:
        """Train the model's own neck and head on all but the last slice of the batch.

        Args:
            features: The whole batch's.
            parts: From :meth:`slices`, for this model.

        Returns:
            What the model's own loss is left with: features, images and targets of the last slice.
            The gradient on the features takes along that of all other images.
        """

        def loss_of(features: Tuple[Tensor, ...], images: slice) -> Losses:
            return self._loss_of(self.model, self.source, features, images)

        rest, self.fed = feed(features, parts, loss_of, self.accumulate)
        self.expected = self.inputs[parts[-1]]
        return rest, self.expected, self.data_samples[parts[-1]]

    def _loss_of(
        self,
        model: nn.Module,
        source: StubbableBackbone,
        features: Features,
        images: Optional[slice],
        loss_weight: float = 1.0,
    ) -> Losses:
        inputs, data_samples = self.inputs, self.data_samples
        with self.targets.only(images):
            if images is None:
                losses = task_loss(
                    model, source, features, inputs, data_samples, advance=model is not self.model
                )
            else:
                inputs, data_samples = inputs[images], data_samples[images]
                whole, self.expected = self.expected, inputs
                losses = self._stateless_loss(model, source, features, inputs, data_samples)
                self.expected = whole
        factor = loss_weight * self._share(model, len(inputs))
        return losses if factor == 1 else map_losses(losses, lambda loss: loss * factor)

    @staticmethod
    def _stateless_loss(model: nn.Module, source: StubbableBackbone, *batch) -> Losses:
        with unchanged_state(model, skip=source) as changed:
            losses = task_loss(model, source, *batch, advance=True)
        # mmdet's AnchorHead leaves its targets there, for those who distil.
        changed = [name for name in changed if '_raw_positive_infos' not in name]
        if changed:
            raise LocalLearningError(
                f'{type(model).__name__} keeps {", ".join(changed)} from one batch to the next, '
                'and would keep others of a few images at a time: leave head_batch_size out'
            )
        return losses

    def _share(self, model: nn.Module, images: int) -> float:
        """What the losses on some images count in those of the batch."""
        # Heads whose targets are assigned here divide by the whole batch's number already.
        return images / len(self.images) if is_image_mean(model) else 1.0

    def joined(self, losses: Losses) -> Losses:
        """The model's own losses on the whole batch.

        Args:
            losses: Those on the last slice, if :meth:`feed_model` has seen to the others.
        """
        if not self.fed:
            return losses
        last = self.slices(self.model, self.source)[-1]
        share = self._share(self.model, last.stop - last.start)
        return add_losses(map_losses(losses, lambda loss: loss * share), self.fed)
