"""What each cell of YOLOv1's grid shall predict."""

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor


class GridTargets(NamedTuple):
    """Targets of a batch, for a grid of S_h × S_w cells.

    Attributes:
        has_object: Cells in which an object's centre lies, (N, S_h, S_w), bool.
        boxes: The object's box in each such cell, (N, S_h, S_w, 4): x and y of its centre from the
            cell's upper left corner, in cells; width and height as shares of the input's.
        labels: The object's class, (N, S_h, S_w); 0 where there is none.
        is_background: Cells whose boxes shall have no confidence, (N, S_h, S_w), bool: all without
            an object, but for those in which the centre of a box to be ignored lies.
    """

    has_object: Tensor
    boxes: Tensor
    labels: Tensor
    is_background: Tensor


def grid_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    grid: Tuple[int, int],
    stride: int,
    ignored: Optional[Sequence[Tensor]] = None,
) -> GridTargets:
    """Give every object to the cell in which its centre lies.

    A cell has one object. Where several have their centres in one, the first in order takes it, as
    in Redmon's own code. Boxes without an area, and those whose centre is outside the grid, are
    nobody's.

    Args:
        boxes: Of each image, (n, 4), as x1, y1, x2, y2 in pixels of the input.
        labels: Of each image, (n,).
        grid: (S_h, S_w).
        stride: Pixels per cell.
        ignored: Boxes of each image that are neither objects nor background, (m, 4).
    """
    height, width = grid
    first = boxes[0]
    count = len(boxes)
    has_object = torch.zeros(count, height, width, dtype=torch.bool, device=first.device)
    target_boxes = first.new_zeros(count, height, width, 4)
    target_labels = torch.zeros(count, height, width, dtype=torch.long, device=first.device)
    is_background = torch.ones_like(has_object)
    for i in range(count):
        if ignored is not None:
            rows, columns, _ = _cells(ignored[i], grid, stride)
            is_background[i, rows, columns] = False
        rows, columns, kept = _cells(boxes[i], grid, stride)
        # Written from the last to the first: the first stays.
        rows, columns, kept = rows.flip(0), columns.flip(0), kept.flip(0)
        first_of_cell = _last_of_each(rows * width + columns)
        rows, columns, kept = rows[first_of_cell], columns[first_of_cell], kept[first_of_cell]
        box = boxes[i][kept]
        centre = (box[:, :2] + box[:, 2:]) / 2 / stride
        size = (box[:, 2:] - box[:, :2]) / stride
        has_object[i, rows, columns] = True
        target_boxes[i, rows, columns] = torch.stack(
            [centre[:, 0] - columns, centre[:, 1] - rows, size[:, 0] / width, size[:, 1] / height],
            1,
        )
        target_labels[i, rows, columns] = labels[i][kept]
    return GridTargets(has_object, target_boxes, target_labels, is_background & ~has_object)


def _cells(boxes: Tensor, grid: Tuple[int, int], stride: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the boxes that have an area and a cell, and which these are."""
    height, width = grid
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).floor().long()
    columns, rows = cells.unbind(1)
    valid = (
        (boxes[:, 2:] > boxes[:, :2]).all(1)
        & (columns >= 0)
        & (columns < width)
        & (rows >= 0)
        & (rows < height)
    )
    kept = valid.nonzero()[:, 0]
    return rows[kept], columns[kept], kept


def _last_of_each(values: Tensor) -> Tensor:
    """Index of the last occurrence of each value."""
    order = torch.arange(len(values), device=values.device)
    later_alike = (values[:, None] == values) & (order > order[:, None])
    return (~later_alike.any(1)).nonzero()[:, 0]
