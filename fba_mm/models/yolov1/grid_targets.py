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
    # Without a look at any value: this goes on for all images at once, and a GPU isn't waited for.
    height, width = grid
    count, cells = len(boxes), len(boxes) * height * width
    every = torch.cat(list(boxes))
    place, columns, rows = _cells(boxes, grid, stride)
    # The first in order of those whose centres are in a cell; the last place is nobody's.
    owner = place.new_full((cells + 1,), len(every)).scatter_reduce(
        0, place, torch.arange(len(every), device=place.device), 'amin'
    )[:-1]
    has_object = owner < len(every)
    background = ~has_object
    if ignored is not None:
        taken = torch.zeros(cells + 1, dtype=torch.bool, device=place.device)
        background &= ~taken.index_fill(0, _cells(ignored, grid, stride)[0], True)[:-1]
    centre = (every[:, :2] + every[:, 2:]) / 2 / stride
    size = (every[:, 2:] - every[:, :2]) / stride
    targets = torch.stack(
        [centre[:, 0] - columns, centre[:, 1] - rows, size[:, 0] / width, size[:, 1] / height], 1
    )
    # What the cells without an object take.
    targets = torch.cat([targets, targets.new_zeros(1, 4)])
    every_label = torch.cat([*labels, labels[0].new_zeros(1)]).long()
    shape = (count, height, width)
    return GridTargets(
        has_object.view(shape),
        targets[owner].view(*shape, 4),
        every_label[owner].view(shape),
        background.view(shape),
    )


def _cells(
    boxes: Sequence[Tensor], grid: Tuple[int, int], stride: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Of all boxes the cell, counted through all images, and its column and row.

    Those without an area, or without a cell, get a cell after the last.
    """
    height, width = grid
    every = torch.cat(list(boxes))
    counts = torch.tensor([len(some) for some in boxes])
    image = torch.repeat_interleave(torch.arange(len(boxes)), counts)
    image = image.to(every.device, non_blocking=True)
    columns, rows = ((every[:, :2] + every[:, 2:]) / 2 / stride).floor().long().unbind(1)
    valid = (
        (every[:, 2:] > every[:, :2]).all(1)
        & (columns >= 0)
        & (columns < width)
        & (rows >= 0)
        & (rows < height)
    )
    place = (image * height + rows) * width + columns
    return place.where(valid, len(boxes) * height * width), columns, rows
