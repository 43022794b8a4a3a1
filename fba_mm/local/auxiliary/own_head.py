"""A neck and head that belong to one auxiliary network."""

from inspect import signature
from typing import Any, Optional, Sequence

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from torch import nn

from ...errors import LocalLearningError
from ...tasks import num_classes_of
from ..task_loss import StubbableBackbone


def build_own_head(
    head: dict,
    channels: Sequence[int],
    strides: Sequence[int],
    own_levels: Optional[Sequence[int]] = None,
) -> nn.Module:
    """Build a model without a backbone on the maps that an auxiliary network makes.

    Args:
        head: Config of the model, without ``backbone``; its ``neck.in_channels`` is filled in.
        channels: Channels of the maps.
        strides: Their strides, in pixels.
        own_levels: Indices of the maps that don't come from the bank; unset, it isn't known.

    Raises:
        LocalLearningError: It has no type or has a backbone, or can't be built.
    """
    if 'type' not in head:
        raise LocalLearningError(
            'auxiliary.head has no type: give the config of a model without a backbone, '
            "such as dict(type='RetinaNet', neck=..., bbox_head=...)"
        )
    if head.get('backbone') is not None:
        raise LocalLearningError(
            'auxiliary.head has a backbone: leave it out, the module is its backbone'
        )
    stub = dict(
        type='FeatureStub', channels=list(channels), strides=list(strides), own_levels=own_levels
    )
    head = dict(head, backbone=stub)
    # The module's loss is computed on batches that the model has already preprocessed.
    head.pop('data_preprocessor', None)
    kind = _registered(head['type'])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        # MMPretrain's classifiers would look for theirs in the scope of another package.
        head['data_preprocessor'] = BaseDataPreprocessor()
    neck = head.get('neck')
    if isinstance(neck, dict) and _takes_channels(neck):
        head['neck'] = dict(neck, in_channels=list(channels))
    try:
        return MODELS.build(head)
    except (TypeError, KeyError, AssertionError, ValueError) as error:
        raise LocalLearningError(
            f'auxiliary.head cannot be built as a {head["type"]}: {error}'
        ) from error


def block_channels(head: dict) -> Optional[int]:
    """The channels of reduced blocks before a head that says so of itself, as light ones do.

    A head takes whatever channels there are if its builder has an attribute ``block_channels``: the
    number for heads whose config has no ``channels``.

    Args:
        head: Config of the head.

    Returns:
        The number; None leaves the channels of the backbone's stages.
    """
    number = getattr(_registered(head.get('type')), 'block_channels', None)
    return None if number is None else head.get('channels', number)


def check_own_head(
    head: nn.Module, channels: Sequence[int], model: nn.Module, source: StubbableBackbone
) -> None:
    """Compare an own head's classes with the model's, and run it once on small maps.

    Args:
        head: From :func:`build_own_head`.
        channels: Channels of its maps.
        model: The model around the backbone.
        source: The backbone in it.

    Raises:
        LocalLearningError: It doesn't fit.
    """
    own = num_classes_of(head)
    main = num_classes_of(model, skip=source)
    if own != main:
        raise LocalLearningError(
            f'auxiliary.head predicts {own} classes, the model {main}: give both the same '
            'num_classes'
        )
    like = next(head.parameters(), None)
    if like is None:
        raise LocalLearningError(
            f'auxiliary.head, a {type(head).__name__}, has nothing to learn: give one with layers, '
            "or leave head out, and modules share the model's own"
        )
    maps = tuple(
        like.new_zeros(1, width, 64 // 2**i, 64 // 2**i) for i, width in enumerate(channels)
    )
    training = head.training
    head.eval()
    try:
        with torch.no_grad(), head.backbone.answering(maps):
            # A plain MMEngine model has a forward alone, whose mode is 'tensor'.
            features = getattr(head, 'extract_feat', head)(like.new_zeros(1, 3, 64, 64))
            names = ('bbox_head', 'rpn_head', 'decode_head')
            first = next((getattr(head, name) for name in names if getattr(head, name, None)), None)
            # A cascade's heads are a list, and each looks at what the one before has found.
            if first is not None and not isinstance(first, nn.ModuleList):
                first(features)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise LocalLearningError(
            'auxiliary.head does not fit its own maps '
            f'({str(error).strip().splitlines()[0]}): check in_channels of its heads against '
            'out_channels of its neck'
        ) from error
    finally:
        head.train(training)


def _takes_channels(neck: dict) -> bool:
    # A classifier's pooling doesn't ask for the channels of its maps.
    kind = _registered(neck.get('type'))
    return kind is None or 'in_channels' in signature(kind).parameters


def _registered(kind: Any) -> Any:
    """What a config's type stands for; None where that isn't registered."""
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return kind
