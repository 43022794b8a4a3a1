"""YOLOv1's loss: squared errors of boxes, confidences and classes."""

from typing import Dict, Tuple, Union

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_number
from .grid_targets import GridTargets


@MODELS.register_module()
class YOLOV1Loss(nn.Module):
    """Sum of squared errors of an image's cells (Redmon et al., CVPR 2016, equation 3).

    Of a cell's boxes the one that overlaps the object most is responsible for it: it learns the
    box, and the overlap as its confidence. If none overlaps, it is the one with the least squared
    error, as in Redmon's own code. All other boxes learn a confidence of 0. Widths and heights are
    compared by their square roots.

    Args:
        coord_weight: Factor of the errors of boxes, λ_coord.
        noobj_weight: Factor of the errors of the confidences of boxes without an object, λ_noobj.
        loss_weight: Factor of the loss.

    Raises:
        LocalLearningError: A factor isn't positive.

    Example:
        >>> loss = YOLOV1Loss()
        >>> cells = torch.zeros(1, 7, 7, dtype=torch.bool)
        >>> targets = GridTargets(cells, torch.zeros(1, 7, 7, 4), torch.zeros(1, 7, 7), ~cells)
        >>> boxes, classes = torch.rand(1, 7, 7, 2, 4), torch.rand(1, 7, 7, 20)
        >>> losses = loss(boxes, torch.rand(1, 7, 7, 2), classes, targets)
        >>> sorted(losses)
        ['loss_centre', 'loss_class', 'loss_noobj', 'loss_object', 'loss_size']
    """

    def __init__(
        self, coord_weight: float = 5.0, noobj_weight: float = 0.5, loss_weight: float = 1.0
    ):
        super().__init__()
        for name, value in (
            ('coord_weight', coord_weight),
            ('noobj_weight', noobj_weight),
            ('loss_weight', loss_weight),
        ):
            check_number(f'YOLOV1Loss: {name}', value, above=0)
        self.coord_weight = coord_weight
        self.noobj_weight = noobj_weight
        self.loss_weight = loss_weight

    def forward(
        self, boxes: Tensor, confidences: Tensor, classes: Tensor, targets: GridTargets
    ) -> Dict[str, Tensor]:
        """The loss of predictions, as a mean over images.

        Args:
            boxes: (N, S_h, S_w, B, 4): x and y of the centre from the cell's corner, in cells, and
                the square roots of the shares that width and height have of the input's.
            confidences: (N, S_h, S_w, B).
            classes: A number for each class, (N, S_h, S_w, C).
            targets: Of the same grid.
        """
        # Every cell is computed with, and those without an object don't count: which they are is
        # not asked for, so that a GPU isn't waited for.
        images = len(boxes)
        chosen, overlap = self._responsible(boxes.detach(), targets.boxes)
        is_chosen = targets.has_object[..., None] & (
            chosen[..., None] == torch.arange(boxes.shape[-2], device=boxes.device)
        )
        is_empty = targets.is_background[..., None] | targets.has_object[..., None] & ~is_chosen
        target = targets.boxes[..., None, :]
        labels = torch.arange(classes.shape[-1], device=classes.device) == targets.labels[..., None]
        sums = dict(
            loss_centre=self.coord_weight
            * _squared(boxes[..., :2], target[..., :2], is_chosen[..., None]),
            loss_size=self.coord_weight
            * _squared(boxes[..., 2:], target[..., 2:].sqrt(), is_chosen[..., None]),
            loss_object=_squared(confidences, overlap[..., None], is_chosen),
            loss_noobj=self.noobj_weight * _squared(confidences, 0, is_empty),
            loss_class=_squared(classes, labels.to(classes.dtype), targets.has_object[..., None]),
        )
        return {name: self.loss_weight * value / images for name, value in sums.items()}

    @staticmethod
    def _responsible(boxes: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
        """Which of a cell's boxes is responsible, and its overlap with the object, (N, S_h, S_w).

        Args:
            boxes: (N, S_h, S_w, B, 4).
            target: (N, S_h, S_w, 4).
        """
        height, width = target.shape[1:3]
        target = target[..., None, :].expand_as(boxes)

        def in_cells(shares: Tensor) -> Tensor:
            return torch.stack([shares[..., 0] * width, shares[..., 1] * height], -1)

        size = boxes[..., 2:].square()
        overlaps = bbox_overlaps(
            _corners(boxes[..., :2], in_cells(size)).reshape(-1, 4),
            _corners(target[..., :2], in_cells(target[..., 2:])).reshape(-1, 4),
            is_aligned=True,
        ).view(boxes.shape[:-1])
        # In shares of the input, as widths and heights are.
        x, y = (boxes[..., :2] - target[..., :2]).unbind(-1)
        distance = (
            torch.stack([x / width, y / height], -1).square() + (size - target[..., 2:]).square()
        ).sum(-1)
        # Overlaps are at most 1: any box that overlaps comes before those that don't.
        rank = torch.where(overlaps.amax(-1, keepdim=True) > 0, overlaps, -distance)
        chosen = rank.argmax(-1)
        return chosen, overlaps.gather(-1, chosen[..., None])[..., 0]

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return (
            f'coord_weight={self.coord_weight}, noobj_weight={self.noobj_weight}, '
            f'loss_weight={self.loss_weight}'
        )


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _squared(found: Tensor, target: Union[Tensor, float], counts: Tensor) -> Tensor:
    """The sum of squared errors, of what counts."""
    return torch.where(counts, (found - target).square(), 0).sum()
