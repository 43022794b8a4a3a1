"""How the ResNets for small images unroll (mmpretrain's ResNet_CIFAR)."""

from dataclasses import replace

from torch import Tensor, nn

from .family import backbone_family
from .resnet import unroll_resnet
from .segment import Unrolled


def _run_stem(backbone: nn.Module, x: Tensor) -> Tensor:
    return backbone.relu(backbone.norm1(backbone.conv1(x)))


@backbone_family('mmpretrain.models.backbones.resnet_cifar.ResNet_CIFAR')
def unroll_resnet_cifar(backbone: nn.Module) -> Unrolled:
    """As a ResNet, but for the stem: a 3×3 convolution that keeps the size, and no pooling.

    Args:
        backbone: A ``ResNet_CIFAR`` of mmpretrain, or ``CifarResNet`` of this package.

    Example:
        >>> [s.name for s in unroll_resnet_cifar(MODELS.build(dict(
        ...     type='mmpretrain.ResNet_CIFAR', depth=18))).segments][:3]
        ['stem', 'layer1.0', 'layer1.1']
    """
    unrolled = unroll_resnet(backbone)
    stem = replace(unrolled.segments[0], run=_run_stem)
    return replace(unrolled, segments=[stem, *unrolled.segments[1:]])
