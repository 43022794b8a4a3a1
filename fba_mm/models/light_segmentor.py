"""A small segmentor to learn from: the own head of an auxiliary network."""

from importlib.util import find_spec
from typing import Any, Optional, Sequence

from mmengine.registry import MODELS
from torch import nn

from ..arguments import check_count
from ..compat.distributions import how_to_install
from ..errors import LocalLearningError


@MODELS.register_module(name='LightFCN')
def light_fcn(
    backbone: dict,
    num_classes: int,
    channels: int = 64,
    positions_of: int = 1,
    label_stride: int = 4,
    in_index: Optional[Sequence[int]] = None,
    loss_decode: Optional[dict] = None,
    **decode_head: Any,
) -> nn.Module:
    """MMSegmentation's EncoderDecoder with a :class:`LightFCNHead`: few channels, few positions.

    It reads the maps that the module and its SLM make. Those of the bank, of modules before, carry
    no gradient: what the head can tell from them, the module needn't learn. mmseg is needed only
    once a head is built.

    Args:
        backbone: Config of the :class:`FeatureStub` that :class:`SLM` gives: the ``channels`` of
            its maps, and ``own_levels``, those that are read; without them, all are.
        num_classes: Number of classes, that of the model.
        channels: Channels of the head.
        positions_of: Index of the backbone's map whose positions the head classifies; 1 is that of
            stride 8.
        label_stride: One label of so many is learned from, in height and in width.
        in_index: Indices of the maps that are read, where these shall be others.
        loss_decode: Unset, cross entropy.
        **decode_head: What shall differ in the head's config, as ``ignore_index``.

    Returns:
        A ``mmseg.EncoderDecoder``.

    Raises:
        LocalLearningError: mmseg isn't installed, ``backbone`` tells no channels, or ``in_index``
            names maps that there are not.

    Example:
        >>> auxiliary = dict(type='SLM', head=dict(type='LightFCN', num_classes=19))
    """
    if find_spec('mmseg') is None:
        raise LocalLearningError(
            f'LightFCN needs mmseg, which is not installed: {how_to_install("mmseg")}'
        )
    in_channels = backbone.get('channels')
    if in_channels is None:
        raise LocalLearningError(
            "LightFCN is told no channels of its maps: give it as auxiliary=dict(type='SLM', "
            "head=dict(type='LightFCN', ...)), or as "
            "backbone=dict(type='FeatureStub', channels=[...])"
        )
    check_count('LightFCN: num_classes', num_classes)
    check_count('LightFCN: channels', channels)
    every = list(range(len(in_channels)))
    if in_index is None:
        in_index = backbone.get('own_levels') or every
    elif not isinstance(in_index, (list, tuple)) or not in_index or set(in_index) - set(every):
        raise LocalLearningError(
            f'LightFCN: in_index={in_index}: give some of {every}, the maps that there are'
        )
    from . import light_fcn_head  # noqa: F401  It imports mmseg.

    head = dict(
        type='LightFCNHead',
        in_channels=[in_channels[index] for index in in_index],
        in_index=list(in_index),
        channels=channels,
        num_classes=num_classes,
        positions_of=positions_of,
        label_stride=label_stride,
        loss_decode=_scoped(loss_decode or dict(type='CrossEntropyLoss')),
    )
    return MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=backbone,
            decode_head=dict(head, **decode_head),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )


# Reduced blocks before it have as few channels, unless the auxiliary network says otherwise.
light_fcn.block_channels = 64


def _scoped(loss: dict) -> dict:
    """With its scope: the default scope is that of the model, which may be another."""
    kind = loss['type']
    return dict(loss, type=f'mmseg.{kind}') if isinstance(kind, str) and '.' not in kind else loss
