"""The ResNets that the local learning literature trains on CIFAR: ResNet-20, -32, -56, -110."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Optional, Sequence

from mmengine.registry import MODELS
from torch import nn

from ..arguments import is_count
from ..compat.distributions import how_to_install
from ..errors import LocalLearningError


@MODELS.register_module(name='CifarResNet')
def cifar_resnet(
    depth: int,
    base_channels: int = 16,
    stem_channels: Optional[int] = None,
    out_indices: Sequence[int] = (2,),
    zero_init_residual: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A ResNet for small images, with three stages of basic blocks (He et al., section 4.2).

    mmpretrain's ``ResNet_CIFAR`` has the four stages and the widths of ImageNet's ResNets. This is
    the same class with stem and stages of 16, 16, 32 and 64 channels, on maps of the image's full,
    half and quarter size, and (depth - 2) / 6 blocks in each stage. Shortcuts that change the size
    have a 1×1 convolution, as in all of mmpretrain's ResNets, where the paper's have none.
    mmpretrain is needed only once one is built.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

    Args:
        depth: Layers, 6 n + 2: 20, 32, 44, 56, 110, ...
        base_channels: Channels of the first stage; each later stage has twice as many.
        stem_channels: Channels of the stem; unset, those of the first stage.
        out_indices: Stages whose maps are returned, of 0 to 2.
        zero_init_residual: Whether residual blocks start as identities, which is mmpretrain's
            default, but not the paper's.
        **kwargs: Other arguments of mmpretrain's ``ResNet_CIFAR``, such as ``norm_cfg`` and
            ``frozen_stages``.

    Returns:
        A subclass of mmpretrain's ``ResNet_CIFAR``.

    Raises:
        LocalLearningError: No such depth, or mmpretrain isn't installed.

    Example:
        >>> model = dict(
        ...     type='ImageClassifier',
        ...     backbone=dict(type='CifarResNet', depth=32),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
    """
    if not is_count(depth, least=8) or depth % 6 != 2:
        raise LocalLearningError(
            f'CifarResNet: depth={depth!r}: give 6 n + 2 for n blocks in each stage, such as 20, '
            '32, 56 or 110'
        )
    if find_spec('mmpretrain') is None:
        raise LocalLearningError(
            f'CifarResNet needs mmpretrain, which is not installed: {how_to_install("mmpretrain")}'
        )
    return _class_of(depth)(
        depth=depth,
        base_channels=base_channels,
        stem_channels=base_channels if stem_channels is None else stem_channels,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=out_indices,
        zero_init_residual=zero_init_residual,
        **kwargs,
    )


@lru_cache(maxsize=None)
def _class_of(depth: int) -> type:
    from mmpretrain.models.backbones.resnet import BasicBlock
    from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR

    blocks = (depth - 2) // 6
    return type(
        'CifarResNet',
        (ResNet_CIFAR,),
        {
            '__doc__': f'{depth} layers in three stages; see :func:`cifar_resnet`.',
            '__module__': __name__,
            'arch_settings': {depth: (BasicBlock, (blocks,) * 3)},
        },
    )
