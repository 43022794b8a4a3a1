"""A small detector to learn from: the own head of an auxiliary network."""

from importlib.util import find_spec
from typing import Any, Dict, List, Optional, Sequence

from mmengine.registry import MODELS
from torch import nn

from ..arguments import check_count, check_number
from ..compat.distributions import how_to_install
from ..errors import LocalLearningError

# Of the neck's maps, where they are not told: RetinaNet's.
_FINEST, _COARSEST = 8, 128


@MODELS.register_module(name='LightRetinaNet')
def light_retinanet(
    backbone: dict,
    num_classes: int,
    channels: int = 64,
    stacked_convs: int = 1,
    octave_base_scale: float = 4,
    scales_per_octave: int = 1,
    ratios: Sequence[float] = (1.0,),
    strides: Optional[Sequence[int]] = None,
    loss_cls: Optional[dict] = None,
    loss_bbox: Optional[dict] = None,
    neck: Optional[dict] = None,
    bbox_head: Optional[dict] = None,
    train_cfg: Optional[dict] = None,
) -> nn.Module:
    """MMDetection's RetinaNet with few channels, one convolution, one anchor per position.

    The loss, the neck's levels and the assignment of targets are those of mmdet's
    ``retinanet_r50_fpn``, so that a module learns the model's task, but at a small part of its
    cost: for 80 classes the logits alone are a ninth. It serves modules of any detector,
    anchor-free and two-stage ones and DETR too, for it takes what maps the backbone has from
    stride 8 on (the model's own neck may start at 4, at four times the cost) and adds coarser
    ones up to stride 128. Where the finest of them is coarser than 8, as with DETR's single map
    of stride 32, each position has the anchors of the missing levels as well. mmdet is needed
    only once a head is built.

    Args:
        backbone: Config of the :class:`FeatureStub` that :class:`SLM` gives; its ``channels``
            are the neck's ``in_channels``.
        num_classes: Number of classes, that of the model.
        channels: Channels of the neck and the head.
        stacked_convs: Convolutions of each branch of the head before the last one.
        octave_base_scale: Size of the smallest anchor of a level, in strides.
        scales_per_octave: Anchor sizes per position and octave.
        ratios: Height / width of the anchors.
        strides: Strides of the neck's maps. Unset, those of the backbone's maps from 8 on, doubled
            up to 128. The neck starts with the backbone's map of the first one; where the
            backbone's strides aren't told, with the second map.
        loss_cls: Classification loss; unset, :class:`SlicedFocalLoss`. Heads make a logit for the
            background unless it says ``use_sigmoid=True``.
        loss_bbox: Regression loss; unset, L1.
        neck: What shall differ in the FPN's config.
        bbox_head: What shall differ in the :class:`LightRetinaHead`'s config.
        train_cfg: What shall differ in the training config, such as ``assigner``.

    Returns:
        A ``mmdet.RetinaNet``.

    Raises:
        LocalLearningError: mmdet isn't installed, ``backbone`` tells no channels, or its maps have
            other strides.

    Example:
        >>> auxiliary = dict(type='SLM', head=dict(type='LightRetinaNet', num_classes=80))
    """
    if find_spec('mmdet') is None:
        raise LocalLearningError(
            f'LightRetinaNet needs mmdet, which is not installed: {how_to_install("mmdet")}'
        )
    in_channels = backbone.get('channels')
    if in_channels is None:
        raise LocalLearningError(
            "LightRetinaNet is told no channels of its maps: give it as auxiliary=dict(type='SLM', "
            "head=dict(type='LightRetinaNet', ...)), or as "
            "backbone=dict(type='FeatureStub', channels=[...])"
        )
    own_strides = backbone.get('strides')
    for name, value, least in (
        ('num_classes', num_classes, 1),
        ('channels', channels, 1),
        ('stacked_convs', stacked_convs, 0),
        ('scales_per_octave', scales_per_octave, 1),
    ):
        check_count(f'LightRetinaNet: {name}', value, least)
    check_number('LightRetinaNet: octave_base_scale', octave_base_scale, above=0)
    octaves = 0
    if strides is None:
        strides = _strides(own_strides)
        # The anchors of levels that are missing below the first one are halves of its own.
        octaves = max((strides[0] // _FINEST).bit_length() - 1, 0)
    sizes: Dict[str, Any] = dict(
        octave_base_scale=octave_base_scale, scales_per_octave=scales_per_octave
    )
    if octaves:
        sizes = dict(
            scales=[
                octave_base_scale * 2 ** (i / scales_per_octave - octaves)
                for i in range(scales_per_octave * (octaves + 1))
            ]
        )
    from . import light_retina_head  # noqa: F401  It imports mmdet.

    # All types with their scope: the default scope is that of the model, which may be another.
    fpn = dict(
        type='mmdet.FPN',
        in_channels=list(in_channels),
        out_channels=channels,
        add_extra_convs='on_input',
        num_outs=len(strides),
    )
    head = dict(
        type='LightRetinaHead',
        num_classes=num_classes,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=stacked_convs,
        anchor_generator=dict(
            type='mmdet.AnchorGenerator', ratios=list(ratios), strides=list(strides), **sizes
        ),
        bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
        loss_cls=loss_cls or dict(type='SlicedFocalLoss', use_sigmoid=True),
        loss_bbox=loss_bbox or dict(type='mmdet.L1Loss'),
    )
    if 'start_level' not in (neck or {}):
        fpn['start_level'] = _start_level(own_strides, strides)
    # Focal loss learns from all anchors: no sampler draws some.
    training = dict(
        assigner=dict(
            type='mmdet.MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            # The default, with its scope: that of the config may be another.
            iou_calculator=dict(type='mmdet.BboxOverlaps2D'),
        ),
        allowed_border=-1,
        pos_weight=-1,
    )
    return MODELS.build(
        dict(
            type='mmdet.RetinaNet',
            backbone=backbone,
            neck=dict(fpn, **(neck or {})),
            bbox_head=dict(head, **(bbox_head or {})),
            train_cfg=dict(training, **(train_cfg or {})),
        )
    )


# Reduced blocks before it have as few channels, unless the auxiliary network says otherwise.
light_retinanet.block_channels = 64


def _strides(own: Optional[Sequence[int]]) -> List[int]:
    """Those of the backbone's maps that the neck takes, and of the coarser ones that it adds."""
    if own is None:
        own = [_FINEST, 2 * _FINEST, 4 * _FINEST]
    strides = [stride for stride in own if stride >= _FINEST] or [own[-1]]
    while 2 * strides[-1] <= _COARSEST:
        strides.append(2 * strides[-1])
    return strides


def _start_level(own: Optional[Sequence[int]], strides: Sequence[int]) -> int:
    """The backbone's map with which the neck starts, so that anchors lie where the maps do.

    Args:
        own: Strides of the backbone's maps, if they are known.
        strides: Those of the neck's maps.
    """
    if own is None:
        return 1
    start = list(own).index(strides[0]) if strides[0] in own else len(own)
    if start == len(own) or list(own)[start:] != list(strides)[: len(own) - start]:
        raise LocalLearningError(
            f'LightRetinaNet looks at maps of strides {tuple(strides)}, and the backbone has those '
            f'of {tuple(own)}: give the head strides that begin with some of these, or take another'
        )
    return start
