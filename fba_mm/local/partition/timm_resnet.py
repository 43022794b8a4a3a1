"""How timm's ResNets unroll: as torchvision's, by other names."""

from functools import partial

from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .scores import pooled_scores
from .segment import Unrolled
from .torchvision_resnet import residual_block, residual_segments, scores_of_last


def _run_stem(network: nn.Module, x: Tensor) -> Tensor:
    return network.maxpool(network.act1(network.bn1(network.conv1(x))))


def _head(network: nn.Module, x: Tensor) -> Tensor:
    return network.forward_head(x)


@backbone_family('timm.models.resnet.ResNet', replaces=('forward_features',))
def unroll_timm_resnet(network: nn.Module) -> Unrolled:
    """Stem, then one segment per residual block; pooling and classifier go with the last one.

    Args:
        network: A ``ResNet`` of timm, as ``timm.create_model('resnet50')``.

    Raises:
        LocalLearningError: It makes no scores (``num_classes=0``).
    """
    if not network.num_classes:
        raise LocalLearningError(
            'this ResNet of timm has num_classes=0 and returns features, from which no loss is '
            'known: create it with the number of classes'
        )
    return Unrolled(
        scores_of_last(residual_segments(network, _run_stem), _head, 'fc'),
        residual_block(network),
        partial(pooled_scores, num_classes=network.num_classes),
        returns_tuple=False,
        num_scores=network.num_classes,
    )
