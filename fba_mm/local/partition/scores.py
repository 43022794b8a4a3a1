"""A small form of what a classifier ends in, for modules that end earlier."""

from torch import nn

from ...pooling import AveragePoolTo


class PooledScores(nn.Sequential):
    """What a classifier ends in: the scores of each class, from the mean over all positions.

    Args:
        channels: Channels of the map.
        num_classes: Number of classes.

    Example:
        >>> PooledScores(64, 10)(torch.rand(2, 64, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__(AveragePoolTo(1), nn.Flatten(1), nn.Linear(channels, num_classes))


def pooled_scores(level: int, channels: int, num_classes: int) -> nn.Module:
    """The ``reduced_output`` of networks that return scores.

    Args:
        level: Always 0.
        channels: Channels of the map that stands for the last stage's.
        num_classes: Number of classes.
    """
    return PooledScores(channels, num_classes)
