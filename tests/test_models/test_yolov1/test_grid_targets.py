"""YOLOv1's targets against the plain ones."""

import pytest
import torch

from fba_mm.models.yolov1 import grid_targets

from .plain_yolov1 import plain_targets

STRIDE = 32


def random_boxes(count: int, grid: tuple, generator) -> torch.Tensor:
    """Boxes all over the input and beyond it, some without an area."""
    limits = torch.tensor([grid[1], grid[0]]) * STRIDE
    centre = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * limits
    size = torch.rand(count, 2, generator=generator) * limits * 0.6
    size[torch.rand(count, generator=generator) < 0.2] *= torch.tensor([1.0, 0.0])
    return torch.cat([centre - size / 2, centre + size / 2], 1)


@pytest.mark.parametrize('grid', [(7, 7), (2, 5)])
def test_as_the_plain_ones(grid):
    generator = torch.Generator().manual_seed(0)
    counts = (12, 0, 30)  # The last one has many objects per cell.
    boxes = [random_boxes(count, grid, generator) for count in counts]
    ignored = [random_boxes(4, grid, generator) for _ in counts]
    labels = [torch.randint(0, 9, (count,), generator=generator) for count in counts]
    found = grid_targets(boxes, labels, grid, STRIDE, ignored)
    for i in range(len(counts)):
        expected = plain_targets(
            boxes[i].tolist(), labels[i].tolist(), grid, STRIDE, ignored[i].tolist()
        )
        for row in range(grid[0]):
            for column in range(grid[1]):
                target = expected.get((row, column))
                assert found.has_object[i, row, column] == (target is not None)
                assert found.is_background[i, row, column] == (
                    target is None and (row, column) not in expected['ignored']
                )
                if target is not None:
                    torch.testing.assert_close(
                        found.boxes[i, row, column], torch.tensor(target[:4]), rtol=1e-4, atol=1e-5
                    )
                    assert found.labels[i, row, column] == target[4]
    # What this test is about did happen.
    assert found.has_object[2].sum() < 20
    assert not found.is_background[1].all() and not found.has_object[1].any()


def test_by_hand():
    boxes = torch.tensor([[32.0, 0, 64, 64], [40, 10, 60, 60], [10, 70, 20, 80]])
    targets = grid_targets([boxes], [torch.tensor([4, 5, 6])], (3, 4), STRIDE)
    # Both of the first two have their centres in row 1 and column 1: the first takes it.
    assert targets.has_object.nonzero().tolist() == [[0, 1, 1], [0, 2, 0]]
    assert targets.boxes[0, 1, 1].tolist() == pytest.approx([0.5, 0, 32 / 128, 64 / 96])
    assert targets.labels[0, 1, 1] == 4 and targets.labels[0, 2, 0] == 6
    assert targets.is_background.sum() == 12 - 2


def test_centres_on_the_border_of_the_input():
    """One on the left and upper border belongs to a cell, one on the others to none."""
    boxes = torch.tensor([[-10.0, -10, 10, 10], [86, 86, 106, 106]])
    targets = grid_targets([boxes], [torch.tensor([0, 1])], (3, 3), STRIDE)
    assert targets.has_object.nonzero().tolist() == [[0, 0, 0]]
