"""How torchvision's ResNets unroll, and those in its detectors and segmentation models.

A classifier returns the scores of its own last layer: the whole of it is the network that is cut.
Its pooling and its linear layer are what it does to the last block's map before it returns it, and
a module that ends earlier has small ones of its own in their place. Detectors and segmentation
models hold the blocks in an ``IntermediateLayerGetter``, which returns some stages' maps by name.
"""

from functools import partial
from typing import Callable, List

from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .resnet import ReducedResidualBlock
from .scores import pooled_scores
from .segment import Segment, Unrolled, run_submodule

_STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


def _run_stem(network: nn.Module, x: Tensor) -> Tensor:
    return network.maxpool(network.relu(network.bn1(network.conv1(x))))


def _head(network: nn.Module, x: Tensor) -> Tensor:
    return network.fc(network.avgpool(x).flatten(1))


def residual_segments(
    network: nn.Module, run_stem: Callable[[nn.Module, Tensor], Tensor]
) -> List[Segment]:
    """Stem, then one segment per residual block, none of them a level yet.

    Args:
        network: Has ``conv1``, ``bn1`` and stages ``layer1``, ``layer2``, ...
        run_stem: What comes before the first stage.
    """
    segments = [Segment('stem', run_stem, ('conv1', 'bn1'), stage=-1)]
    for stage, layer in enumerate(name for name in _STAGES if hasattr(network, name)):
        for block, child in network.get_submodule(layer).named_children():
            path = f'{layer}.{block}'
            # The last block's: where a stage is dilated, its first block is by less.
            segments.append(
                Segment(
                    path,
                    partial(run_submodule, path=path),
                    (path,),
                    stage,
                    dilation=child.conv2.dilation[0],
                )
            )
    return segments


def residual_block(network: nn.Module) -> Callable[[int, int, int], nn.Module]:
    """The ``reduced_block`` of a ResNet.

    Args:
        network: Has stages ``layer1``, ``layer2``, ...
    """
    return partial(ReducedResidualBlock, bottleneck=hasattr(network.layer1[0], 'conv3'))


def scores_of_last(
    segments: List[Segment], head: Callable[[nn.Module, Tensor], Tensor], *submodules: str
) -> List[Segment]:
    """The same segments, where the last one's output is returned as scores.

    Args:
        segments: From :func:`residual_segments`.
        head: ``head(network, x)``, what the network does to the last map.
        *submodules: Names of the layers that it uses.
    """
    last = segments[-1]
    return [
        *segments[:-1],
        Segment(
            last.name,
            last.run,
            (*last.submodules, *submodules),
            last.stage,
            level=0,
            level_output=head,
            dilation=last.dilation,
        ),
    ]


@backbone_family('torchvision.models.resnet.ResNet', replaces=('_forward_impl',))
def unroll_torchvision_resnet(network: nn.Module) -> Unrolled:
    """Stem, then one segment per residual block; the classifier goes with the last one.

    Args:
        network: A ``ResNet`` of torchvision.
    """
    segments = scores_of_last(residual_segments(network, _run_stem), _head, 'fc')
    classes = getattr(network.fc, 'out_features', None)
    if classes is None:
        raise LocalLearningError(
            f'ResNet.fc is a {type(network.fc).__name__}, which tells no number of classes: put an '
            'nn.Linear there, or describe your model with @fba_mm.backbone_family'
        )
    return Unrolled(
        segments,
        residual_block(network),
        partial(pooled_scores, num_classes=classes),
        returns_tuple=False,
        num_scores=classes,
    )


@backbone_family('torchvision.models._utils.IntermediateLayerGetter')
def unroll_intermediate_layers(network: nn.Module) -> Unrolled:
    """Stem, then one segment per residual block; the ends of the stages asked for are levels.

    Args:
        network: An ``IntermediateLayerGetter`` with the layers of a ResNet.

    Raises:
        LocalLearningError: It has those of another network, or returns what lies before the stages.
    """
    names = [name for name, _ in network.named_children()]
    returned = dict(network.return_layers)
    if names[:4] != ['conv1', 'bn1', 'relu', 'maxpool'] or set(names[4:]) - set(_STAGES):
        raise LocalLearningError(
            f"torchvision's IntermediateLayerGetter with layers {', '.join(names[:5])}, ... cannot "
            'be cut: take a ResNet, or describe the model with @fba_mm.backbone_family'
        )
    if set(returned) - set(_STAGES):
        raise LocalLearningError(
            "torchvision's IntermediateLayerGetter returns "
            f'{", ".join(sorted(set(returned) - set(_STAGES)))}, which is no stage: return layers '
            f'among {", ".join(_STAGES)}'
        )
    segments = residual_segments(network, _run_stem)
    stages = [name for name in names if name in returned]
    for i, segment in enumerate(segments):
        stage = segment.name.partition('.')[0]
        ends = i + 1 == len(segments) or segments[i + 1].stage != segment.stage
        if ends and stage in returned:
            segments[i] = Segment(
                segment.name,
                segment.run,
                segment.submodules,
                segment.stage,
                level=stages.index(stage),
                dilation=segment.dilation,
            )
    return Unrolled(
        segments, residual_block(network), level_names=tuple(returned[name] for name in stages)
    )
