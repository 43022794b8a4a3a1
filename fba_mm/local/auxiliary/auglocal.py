"""AugLocal: an auxiliary network of the same shape as a sample of the layers that follow."""

from typing import Optional, Tuple

from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_count, check_number
from ...errors import LocalLearningError
from ..partition import CutPoint, LaterBlock
from ..partition.cut_point import same
from .classification import ClassificationAuxiliary


@MODELS.register_module()
class AugLocal(ClassificationAuxiliary):
    """Augmented local learning: some of the later blocks, anew, then pooling and a linear layer.

    A module is to learn what the rest of the network will need. So its auxiliary network is built
    in the shape of d of the blocks that follow it, at equal distances and the last one among them.
    Behind block l of L, counted from 0, these are the blocks

        round(l + i · (L - 1 - l) / d),    i = 1 … d,

    halves rounded to even, or all that follow where these are no more than d. Each is one block of
    the backbone's kind with the pick's channels. It has a stride of 2 at most: where the pick
    before it lies more than one down-sampling above, later picks make up for the rest. Where d is
    1, batch norm comes before the linear layer.

    Early modules get deeper auxiliary networks than late ones (the pyramid). Module i of K,
    counted from 0, gets

        d(i) = round(max_depth - pyramid · i / (K - 2) · (max_depth - min_depth)),

    at least ``min_depth``. With ``pyramid=1`` the last auxiliary network has ``min_depth``, with
    0.5 it has come half the way, with 0 all have ``max_depth``.

    On CIFAR, the authors train K - d modules, the last one d + 1 blocks end to end, so that no
    auxiliary network is deeper than what follows it: ``num_modules=[1] * 12 + [4]`` for a ResNet-32
    (K = 16) with ``max_depth=3``. On ImageNet they don't.

    Source: Ma, Wu, Si and Tan, "Scaling Supervised Local Learning with Augmented Auxiliary
    Networks", ICLR 2024 (uniform selection, pyramidal depth), and the code released with it. There,
    strides follow the picks' channels, which on CIFAR's ResNets double with the stride.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        max_depth: d of the first module, in blocks; the released runs have 1, 2, 3 and 5, the paper
            reports up to 9.
        min_depth: What d falls towards.
        pyramid: How fast it falls; the paper's coefficient is 0.5.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: ``1 <= min_depth <= max_depth`` or ``0 <= pyramid <= 1`` does not hold,
            or the network passes on tokens; and see :class:`ClassificationAuxiliary`.

    Example:
        >>> backbone = dict(type='LocalBackbone', backbone=dict(type='CifarResNet', depth=32),
        ...                 num_modules=[1] * 12 + [4],
        ...                 auxiliary=dict(type='AugLocal', num_classes=10, max_depth=3))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        max_depth: int = 3,
        min_depth: int = 1,
        pyramid: float = 0.5,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        check_count('auxiliary.min_depth', min_depth, what='a number of blocks')
        check_count('auxiliary.max_depth', max_depth, min_depth, 'a number of blocks')
        check_number('auxiliary.pyramid', pyramid, least=0, most=1)
        depth = depth_at(cut_point, max_depth, min_depth, pyramid)
        if cut_point.as_map is not same:
            raise LocalLearningError(
                "AugLocal's blocks stand for those of a network that passes on maps, and this one "
                'passes on tokens: take another auxiliary network'
            )
        self.picks = pick(cut_point, depth)
        self.blocks = Sequential()
        channels, stride = cut_point.channels, cut_point.stride
        for block in self.picks:
            step = 2 if block.stride > stride else 1
            self.blocks.append(cut_point.reduced_block(channels, block.channels, step))
            channels, stride = block.channels, stride * step
        # A shallow auxiliary network passes on features of any scale.
        self.norm = nn.BatchNorm1d(channels) if depth <= 1 else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)

    def scores(self, x: Tensor) -> Tensor:
        """See :class:`ClassificationAuxiliary`."""
        return self.fc(self.norm(self.blocks(x).mean((2, 3))))


def depth_at(cut_point: CutPoint, max_depth: int, min_depth: int, pyramid: float) -> int:
    """The depth d of a module's auxiliary network, as :class:`AugLocal` defines it.

    Args:
        cut_point: The end of the module.
        max_depth: d of the first module.
        min_depth: What d falls towards.
        pyramid: How fast.
    """
    fall = pyramid * cut_point.module / max(cut_point.num_modules - 2, 1)
    # In this order of operations, rounding errors decide about halves as in the authors' code.
    return max(round(max_depth * (1 - fall) + fall * min_depth), min_depth)


def pick(cut_point: CutPoint, depth: int) -> Tuple[LaterBlock, ...]:
    """Some of the later blocks at equal distances, up to the last one.

    Args:
        cut_point: The end of the module.
        depth: How many to pick; all that follow, if they are fewer.
    """
    first, later = cut_point.block, cut_point.later
    if depth >= len(later):
        return later
    numbers = [round(first + len(later) / depth * i) for i in range(1, depth + 1)]
    return tuple(later[number - first - 1] for number in numbers)
