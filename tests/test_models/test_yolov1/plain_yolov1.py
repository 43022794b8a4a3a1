"""YOLOv1's targets and loss, written out for one cell and one box after the other.

After Redmon et al., "You Only Look Once", CVPR 2016, equation 3 and the text around it.
"""

import math


def plain_targets(boxes: list, labels: list, grid: tuple, stride: int, ignored: list = ()) -> dict:
    """(row, column) of a cell → (x, y, w, h, label); cells of ignored boxes under ``'ignored'``."""
    height, width = grid
    targets = {'ignored': set()}

    def cell_of(x1, y1, x2, y2):
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        inside = 0 <= x < width * stride and 0 <= y < height * stride
        return (int(y // stride), int(x // stride)) if inside and x2 > x1 and y2 > y1 else None

    for box in ignored:
        targets['ignored'].add(cell_of(*box))
    for (x1, y1, x2, y2), label in zip(boxes, labels):
        cell = cell_of(x1, y1, x2, y2)
        if cell is None or cell in targets:
            continue
        row, column = cell
        targets[cell] = (
            (x1 + x2) / 2 / stride - column,
            (y1 + y2) / 2 / stride - row,
            (x2 - x1) / (width * stride),
            (y2 - y1) / (height * stride),
            label,
        )
    return targets


def iou(a: tuple, b: tuple) -> float:
    """Of two boxes (x, y, w, h) with their centres, all in the same unit."""
    overlap = 1.0
    for i in (0, 1):
        low = max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        high = min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
        overlap *= max(0.0, high - low)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


def plain_loss(predictions, targets: dict, num_boxes: int, num_classes: int) -> dict:
    """The terms of equation 3 for one image, λ_coord = 5 and λ_noobj = 0.5.

    Args:
        predictions: ``predictions[row][column]``: the numbers of a cell.
        targets: From :func:`plain_targets`.
        num_boxes: B.
        num_classes: C.
    """
    terms = dict(centre=0.0, size=0.0, object=0.0, noobj=0.0, **{'class': 0.0})
    height, width = len(predictions), len(predictions[0])
    for row in range(height):
        for column in range(width):
            cell = [float(number) for number in predictions[row][column]]
            boxes = [cell[5 * j : 5 * j + 5] for j in range(num_boxes)]
            if (row, column) not in targets:
                if (row, column) not in targets['ignored']:
                    terms['noobj'] += 0.5 * sum(box[4] ** 2 for box in boxes)
                continue
            x, y, w, h, label = targets[row, column]
            # All in shares of the input.
            truth = ((column + x) / width, (row + y) / height, w, h)
            found = [
                ((column + b[0]) / width, (row + b[1]) / height, b[2] ** 2, b[3] ** 2)
                for b in boxes
            ]
            overlaps = [iou(one, truth) for one in found]
            errors = [sum((p - q) ** 2 for p, q in zip(one, truth)) for one in found]
            responsible = (
                overlaps.index(max(overlaps)) if max(overlaps) > 0 else errors.index(min(errors))
            )
            for j, box in enumerate(boxes):
                if j != responsible:
                    terms['noobj'] += 0.5 * box[4] ** 2
                    continue
                terms['centre'] += 5 * ((box[0] - x) ** 2 + (box[1] - y) ** 2)
                terms['size'] += 5 * ((box[2] - math.sqrt(w)) ** 2 + (box[3] - math.sqrt(h)) ** 2)
                terms['object'] += (box[4] - overlaps[j]) ** 2
            for c in range(num_classes):
                terms['class'] += (cell[5 * num_boxes + c] - (c == label)) ** 2
    return terms
