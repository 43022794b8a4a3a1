"""What a module may use while it trains."""
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import torch
from torch import Tensor, nn

from .feature_bank import FeatureBank
from .task_loss import AnsweringBackbone, Losses, task_loss


@dataclass
class LocalStep:
    """One training iteration as :class:`LocalBackbone` sees it.

    Attributes:
        model: The model around the backbone, whose neck and head auxiliary networks may share.
        source: The backbone of that model, which can answer with given features.
        inputs: The batch of images after preprocessing, (N, 3, H, W).
        data_samples: The batch's targets.
        bank: Key features of this batch.
        train: ``train(i, losses)`` computes the gradients of module i's losses, now.
        generator: Source of chance on the CPU, seeded for this iteration: what is drawn from it
            does not depend on whether training was interrupted before.
    """
    model: nn.Module
    source: AnsweringBackbone
    inputs: Tensor
    data_samples: list
    bank: FeatureBank
    train: Callable[[int, Losses], None]
    generator: Optional[torch.Generator] = None

    def shared_loss(self, features: Tuple[Tensor, ...]) -> Losses:
        """The losses of the model's own neck and head on given features.

        Args:
            features: As the backbone returns them, (N, C, H, W) each.
        """
        return task_loss(self.model, self.source, features, self.inputs, self.data_samples)
