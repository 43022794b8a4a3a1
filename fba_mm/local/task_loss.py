"""Features → the task's own loss.

Every OpenMMLab model computes its loss from what ``self.backbone(inputs)`` returns. Let the
backbone answer with given features instead, and ``model.loss()`` becomes the loss of those
features, whatever the neck, the head and the task are. mmagic's models, which call their backbone
``generator``, go the same way.
"""

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union, cast

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import LocalLearningError
from .kept_state import unchanged_state

Losses = Dict[str, Union[Tensor, List[Tensor]]]
# What a backbone returns: a tuple of maps, or the one image that a generator makes.
Features = Union[Tensor, Tuple[Tensor, ...]]

SEVERAL_PASSES = (
    "the model's loss runs its backbone several times, on other images each time, as contrastive, "
    'siamese and tracking models do, and local learning follows one pass: train it without '
    'LocalBackbone, or with num_modules=1 (back-propagation)'
)


class StubbableBackbone(BaseModule):
    """A backbone that can return precomputed features in place of its own."""

    def __init__(self, init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self._answer: Optional[Features] = None
        self._asked: Any = None

    @contextmanager
    def answering(self, features: Features) -> Iterator[None]:
        """Within this context, ``forward`` returns ``features`` and computes nothing.

        Args:
            features: As the backbone returns them, (N, C, H, W) each.
        """
        self._answer = features
        try:
            yield
        finally:
            self._answer = self._asked = None

    def answer(self, x: Any) -> Features:
        """The features that were given to :meth:`answering`.

        Args:
            x: What the model asks for the features of.

        Raises:
            LocalLearningError: It has asked before, for those of something else.
        """
        if self._asked is not None and self._asked is not x:
            raise LocalLearningError(SEVERAL_PASSES)
        self._asked = x
        return cast(Features, self._answer)


# Configs that were written out before have it by its former name, FeatureSource.
@MODELS.register_module(name=['FeatureStub', 'FeatureSource'])
class FeatureStub(StubbableBackbone):
    """The backbone of an auxiliary network's own model: it returns precomputed features.

    Args:
        channels: Channels of the maps that it returns, for building a neck on top.
        strides: Their strides, in pixels, for placing anchors.
        own_levels: Indices of those that don't come from the bank, for a head that reads no others.
    """

    def __init__(
        self,
        channels: Optional[Sequence[int]] = None,
        strides: Optional[Sequence[int]] = None,
        own_levels: Optional[Sequence[int]] = None,
    ):
        super().__init__()
        self.channels = channels
        self.strides = strides
        self.own_levels = own_levels

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Return the features that were given to :meth:`answering`."""
        return self.answer(x)


def task_loss(
    model: nn.Module,
    source: StubbableBackbone,
    features: Features,
    inputs: Tensor,
    data_samples: list,
    advance: bool = False,
) -> Losses:
    """The losses that a model's neck and head compute on given features.

    Running statistics, counters and whatever else the head keeps belong to what the network sees in
    evaluation, the deepest features, and advance once per iteration: not here, unless asked for.

    Args:
        model: Any OpenMMLab model with ``loss(inputs, data_samples)``, or, as mmagic's, with
            ``forward(inputs, data_samples, mode='loss')`` alone.
        source: The model's backbone, or the part of it that answers.
        features: As the backbone returns them, (N, C, H, W) each.
        inputs: The batch of images, (N, 3, H, W).
        data_samples: The batch's targets.
        advance: Whether this pass is the one that the head counts, as that of a module's own head
            is; see :func:`unchanged_state`.

    Returns:
        The model's dict of losses.
    """
    data_samples = _own_copy(data_samples)
    state = nullcontext() if advance else unchanged_state(model, skip=source)
    with source.answering(features), state:
        if hasattr(model, 'loss'):
            return model.loss(inputs, data_samples)
        # Not called as model(...): the hooks on it belong to the training step around this.
        return model.forward(inputs, data_samples, mode='loss')


def _own_copy(data_samples: Any) -> Any:
    """The same targets in containers of their own.

    Heads may put their targets into another form in place, as RTMDet-Ins does with masks, and the
    next module's head is given the same samples.
    """
    if isinstance(data_samples, (list, tuple)):
        return [_own_copy(sample) for sample in data_samples]
    if not isinstance(data_samples, BaseDataElement):
        return data_samples
    copied = data_samples.new()
    for name, value in data_samples.items():
        if isinstance(value, BaseDataElement):
            setattr(copied, name, value.new())
    return copied


def map_losses(losses: Losses, function: Callable[[Tensor], Tensor]) -> Losses:
    """Apply a function to every loss; entries that aren't losses, accuracies say, stay as they are.

    Args:
        losses: As a model's ``loss`` returns them: tensors, or lists of tensors.
        function: What to do with each tensor.
    """
    return {
        name: value
        if 'loss' not in name
        else [function(v) for v in value]
        if isinstance(value, (list, tuple))
        else function(value)
        for name, value in losses.items()
    }
