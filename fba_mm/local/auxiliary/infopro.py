"""InfoPro: keep what tells of the image, and learn what tells of the class."""

import math
from typing import Optional, Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import check_number
from ...errors import LocalLearningError
from ..local_step import LocalStep
from ..partition import CutPoint
from ..task_loss import Losses
from .classification import ClassificationAuxiliary, cross_entropy

_PROJECTION = 128
_DECODER_CHANNELS = 12
_TEMPERATURE = 0.07


@MODELS.register_module()
class InfoPro(ClassificationAuxiliary):
    """Information propagation: a decoder restores the image, a classifier names its class.

    Greedy modules throw away what later ones would need. Here module i of K, counted from 0, has
    the loss λ1 · reconstruction + λ2 · task, with both factors interpolated between the first
    module and the last that has an auxiliary network: λ(i) = first + i / (K - 2) · (last - first),
    and λ(i) = first for K = 2; or given one by one.

    - Reconstruction: bilinear to the image's size, 3×3 convolution to 12 channels, batch norm,
      ReLU, 3×3 convolution to 3 channels; binary cross-entropy with the image before
      normalization, in 0 to 1.
    - Task: 3×3 convolution to 2c channels with stride 2 (in the last stage c, stride 1), batch
      norm, ReLU, global pooling, linear to 128, ReLU, linear to the classes; cross-entropy. With
      ``contrastive``, the last layer is linear to 128 and the loss is the supervised contrastive
      loss at temperature 0.07 on the normalized result.

    Source: Wang, Ni, Song, Yang and Huang, "Revisiting Locally Supervised Learning: an Alternative
    to End-to-end Training", ICLR 2021; contrastive loss: Khosla et al., "Supervised Contrastive
    Learning", NeurIPS 2020, equation 2, in which an image without a second of its class in the
    batch counts as zero here. Corners are aligned in the resizing, and the last stage's stride is
    1, as in the authors' experiments. The decoder works at the image's size: for networks that
    reduce the image in their stem it takes more memory than the module.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        num_classes: Classes of the data set, as in the model's head.
        reconstruction_weight: λ1 of the first and of the last auxiliary network, or of each one of
            the K - 1. The default is the authors' for a ResNet-32 in 16 modules; (5, 0.5) for a
            ResNet-110 in 55.
        task_weight: λ2, in the same way; (0, 1) for a ResNet-110 in 55 modules.
        contrastive: Contrast images instead of naming their class. Where a batch augmentation has
            mixed images, each counts as of its largest class.
        max_value: The largest value of an image before normalization.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: A weight is neither a pair nor a list of K - 1 numbers from 0, or both
            are 0 at this module; and see :class:`ClassificationAuxiliary`.

    Example:
        >>> auxiliary = dict(type='InfoPro', num_classes=10)
        >>> auxiliary = dict(type='InfoPro', num_classes=10, reconstruction_weight=(5., .5),
        ...                  task_weight=(0., 1.))          # ResNet-110, K = 55
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        reconstruction_weight: Sequence[float] = (5.0, 0.2),
        task_weight: Sequence[float] = (0.05, 0.5),
        contrastive: bool = False,
        max_value: float = 255.0,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, num_classes, loss_weight, init_cfg)
        self.reconstruction_weight = _weight_at(
            'reconstruction_weight', reconstruction_weight, cut_point
        )
        self.task_weight = _weight_at('task_weight', task_weight, cut_point)
        if self.reconstruction_weight == self.task_weight == 0:
            raise LocalLearningError(
                f'auxiliary.reconstruction_weight and task_weight are both 0 at module '
                f'{cut_point.module + 1}, which would not train: give one a positive number there'
            )
        self.contrastive = contrastive
        self.max_value = check_number('auxiliary.max_value', max_value, above=0)

        channels = cut_point.channels
        in_last_stage = cut_point.stage == cut_point.stages[-1].stage
        width, stride = (channels, 1) if in_last_stage else (2 * channels, 2)
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, _PROJECTION),
            nn.ReLU(),
            nn.Linear(_PROJECTION, _PROJECTION if contrastive else num_classes),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, _DECODER_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(_DECODER_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(_DECODER_CHANNELS, cut_point.image_channels, 3, padding=1),
        )

    def scores(self, x: Tensor) -> Tensor:
        """See :class:`ClassificationAuxiliary`.

        Raises:
            LocalLearningError: The loss contrasts images.
        """
        if self.contrastive:
            raise LocalLearningError(
                'InfoPro(contrastive=True) makes no class scores: leave LocalAccuracyHook out of '
                'custom_hooks'
            )
        return self.classifier(x)

    def local_losses(self, x: Tensor, labels: Tensor, step: LocalStep) -> Losses:
        """Reconstruction and task. See :class:`ClassificationAuxiliary`."""
        image = self._image(step)
        restored = self.decoder(
            F.interpolate(x, size=image.shape[2:], mode='bilinear', align_corners=True)
        )
        # On logits: binary cross-entropy after a sigmoid is refused under autocast.
        reconstruction = F.binary_cross_entropy_with_logits(restored.float(), image)
        output = self.classifier(x)
        if self.contrastive:
            classes = labels.argmax(1) if labels.ndim == 2 else labels
            task = supervised_contrast(output, classes)
        else:
            task = cross_entropy(output, labels)
        return dict(
            loss_reconstruction=self.reconstruction_weight * reconstruction,
            loss_cls=self.task_weight * task,
        )

    def _image(self, step: LocalStep) -> Tensor:
        """The batch as it was before normalization, in 0 to 1."""
        image = step.inputs.float()
        preprocessor = step.model.data_preprocessor
        if getattr(preprocessor, '_enable_normalize', False):
            image = image * preprocessor.std + preprocessor.mean
        # Padding may have any value.
        return (image / self.max_value).clamp(0, 1)


def _weight_at(name: str, weights: Sequence[float], cut_point: CutPoint) -> float:
    """The weight of a module, interpolated between two or one of a list."""
    count = cut_point.num_modules - 1
    fits = (
        isinstance(weights, (list, tuple))
        and len(weights) in (2, count)
        and all(isinstance(weight, (int, float)) and 0 <= weight < math.inf for weight in weights)
    )
    if not fits:
        raise LocalLearningError(
            f'auxiliary.{name}={weights}: give two numbers from 0, of the first and the last '
            f'module, as in {name}=(5., .2), or one for each of the {count} auxiliary networks'
        )
    if len(weights) == count:
        return weights[cut_point.module]
    first, last = weights
    depth = cut_point.module / max(count - 1, 1)
    return (1 - depth) * first + depth * last


def supervised_contrast(
    features: Tensor, classes: Tensor, temperature: float = _TEMPERATURE
) -> Tensor:
    """Supervised contrastive loss: each image is to be nearest to those of its class.

    Args:
        features: (N, D), not yet normalized.
        classes: (N,) classes.
        temperature: Divisor of the cosine similarities.

    Returns:
        The mean over all images, in float32; images without a second of their class count as 0.
    """
    unit = F.normalize(features.float(), dim=1)
    with torch.autocast(unit.device.type, enabled=False):
        similarities = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # Finite: a lone image's row would be infinite throughout, and its gradient not a number.
    others = similarities.masked_fill(itself, torch.finfo(similarities.dtype).min)
    log_share = similarities - others.logsumexp(1, keepdim=True)
    positive = (classes[:, None] == classes[None, :]) & ~itself
    mean_positive = (log_share * positive).sum(1) / positive.sum(1).clamp(min=1)
    return -mean_positive.mean()
