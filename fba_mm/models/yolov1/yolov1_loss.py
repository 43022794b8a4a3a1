"""YOLOv1's loss: squared errors of boxes, confidences and classes."""

from typing import Dict

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
        >>> losses = loss(boxes, confidences, classes, targets)
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
        images = len(boxes)
        cells = targets.has_object
        own, target = boxes[cells], targets.boxes[cells]
        chosen, overlap = self._responsible(own.detach(), target, cells)
        rows = torch.arange(len(own), device=own.device)
        box = own[rows, chosen]
        confidence = confidences[cells]
        labels = torch.zeros_like(classes[cells])
        labels[rows, targets.labels[cells]] = 1
        others = torch.ones_like(confidence, dtype=torch.bool)
        others[rows, chosen] = False
        sums = dict(
            loss_centre=self.coord_weight * _squared(box[:, :2], target[:, :2]),
            loss_size=self.coord_weight * _squared(box[:, 2:], target[:, 2:].sqrt()),
            loss_object=_squared(confidence[rows, chosen], overlap),
            loss_noobj=self.noobj_weight
            * (
                confidences[targets.is_background].square().sum()
                + confidence[others].square().sum()
            ),
            loss_class=_squared(classes[cells], labels),
        )
        return {name: self.loss_weight * value / images for name, value in sums.items()}

    @staticmethod
    def _responsible(boxes: Tensor, target: Tensor, cells: Tensor):
        """Which of a cell's boxes is responsible, (n,), and its overlap with the object, (n,)."""
        grid = torch.tensor(cells.shape[:0:-1], device=boxes.device, dtype=boxes.dtype)
        count = boxes.shape[1]
        target = target[:, None].expand(-1, count, -1)
        found = _corners(boxes[..., :2], boxes[..., 2:].square() * grid)
        overlaps = bbox_overlaps(
            found.reshape(-1, 4),
            _corners(target[..., :2], target[..., 2:] * grid).reshape(-1, 4),
            is_aligned=True,
        ).reshape(-1, count)
        # In shares of the input, as widths and heights are.
        distance = (
            torch.cat(
                [
                    (boxes[..., :2] - target[..., :2]) / grid,
                    boxes[..., 2:].square() - target[..., 2:],
                ],
                -1,
            )
            .square()
            .sum(-1)
        )
        # Overlaps are at most 1: any box that overlaps comes before those that don't.
        rank = torch.where(overlaps.amax(1, keepdim=True) > 0, overlaps, -distance)
        chosen = rank.argmax(1)
        return chosen, overlaps.gather(1, chosen[:, None])[:, 0]

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return (
            f'coord_weight={self.coord_weight}, noobj_weight={self.noobj_weight}, '
            f'loss_weight={self.loss_weight}'
        )


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _squared(found: Tensor, target: Tensor) -> Tensor:
    return (found - target).square().sum()
