"""YOLOv1's loss against the plain one."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalLearningError
from fba_mm.models.yolov1 import YOLOV1Head, YOLOV1Loss, grid_targets

from .plain_yolov1 import plain_loss, plain_targets

CLASSES, STRIDE = 5, 32


def predictions(images: int, grid: tuple, num_boxes: int, seed: int, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, num_boxes * 5 + CLASSES, *grid)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * size).requires_grad_()


BOXES = [[[10.0, 20, 100, 90], [64, 70, 128, 128]], [], [[0, 0, 96, 128], [70, 6, 90, 30]]]
LABELS = [[1, 4], [], [0, 3]]
IGNORED = [[], [[0.0, 0, 20, 20]], []]


def head(num_boxes: int) -> YOLOV1Head:
    return YOLOV1Head(CLASSES, 8, num_boxes=num_boxes, feat_channels=8)


@pytest.mark.parametrize('num_boxes', [1, 2, 3])
# Small numbers are small boxes, of which none overlaps an object.
@pytest.mark.parametrize('size', [0.01, 0.5, 2.0])
def test_as_the_plain_one(size, num_boxes):
    grid = (4, 3)
    pred = predictions(3, grid, num_boxes, 0, size)
    boxes = [torch.tensor(each, dtype=torch.float64).reshape(-1, 4) for each in BOXES]
    ignored = [torch.tensor(each, dtype=torch.float64).reshape(-1, 4) for each in IGNORED]
    labels = [torch.tensor(each, dtype=torch.long) for each in LABELS]
    targets = grid_targets(boxes, labels, grid, STRIDE, ignored)
    losses = YOLOV1Loss()(*head(num_boxes).split(pred), targets)
    expected = dict.fromkeys(('centre', 'size', 'object', 'noobj', 'class'), 0.0)
    for i in range(3):
        plain = plain_loss(
            pred[i].detach().permute(1, 2, 0).tolist(),
            plain_targets(BOXES[i], LABELS[i], grid, STRIDE, IGNORED[i]),
            num_boxes,
            CLASSES,
        )
        for name, value in plain.items():
            expected[name] += value / 3
    assert set(losses) == {f'loss_{name}' for name in expected}
    for name, value in expected.items():
        assert value > 0 or name == 'noobj' and num_boxes == 1
        assert losses[f'loss_{name}'].item() == pytest.approx(value, rel=1e-5), name


def test_responsible_boxes():
    """The one that overlaps most; the nearest where none overlaps."""
    targets = grid_targets(
        [torch.tensor([[32.0, 32, 64, 64]])], [torch.tensor([0])], (4, 4), STRIDE
    )
    # Centre in the middle of cell (1, 1), a quarter of the input wide and high.
    boxes = torch.zeros(1, 4, 4, 2, 4)
    near, far = [0.5, 0.5, 0.3, 0.3], [5.0, 5, 0.5, 0.5]
    confidences, classes = torch.zeros(1, 4, 4, 2), torch.zeros(1, 4, 4, 1)
    confidences[..., 1] = 1.0
    for one, other, learns in ((near, far, 0), (far, near, 1)):
        boxes[0, 1, 1] = torch.tensor([one, other])
        losses = YOLOV1Loss()(boxes, confidences, classes, targets)
        assert losses['loss_centre'] == 0
        overlap = 0.3**4 / 0.25**2
        torch.testing.assert_close(
            losses['loss_object'], torch.tensor((overlap - learns) ** 2), rtol=1e-5, atol=1e-6
        )
    boxes[0, 1, 1] = torch.tensor([[3.5, 0.5, 0.1, 0.1], [2.0, 0.5, 0.1, 0.1]])
    losses = YOLOV1Loss()(boxes, confidences, classes, targets)
    torch.testing.assert_close(losses['loss_centre'], torch.tensor(5 * 1.5**2))
    assert losses['loss_object'] == 1  # No overlap, and a confidence of 1.


def test_gradients():
    """Overlaps are targets: no gradient passes through them."""
    pred = predictions(1, (4, 3), 2, 1, 0.5)
    boxes = [torch.tensor(BOXES[0], dtype=torch.float64)]
    targets = grid_targets(boxes, [torch.tensor(LABELS[0])], (4, 3), STRIDE)
    losses = YOLOV1Loss()(*head(2).split(pred), targets)
    (gradient,) = torch.autograd.grad(losses['loss_object'], pred)
    rows = gradient.abs().sum((0, 2, 3)).nonzero()[:, 0].tolist()
    assert set(rows) <= {4, 9}  # Confidences.


@pytest.mark.parametrize('boxes', [[], [[5.0, 5, 5, 30]]])
def test_images_without_objects(boxes):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    targets = grid_targets([boxes], [torch.zeros(len(boxes), dtype=torch.long)], (2, 2), STRIDE)
    pred = predictions(1, (2, 2), 2, 2, 1.0).float()
    losses = YOLOV1Loss()(*head(2).split(pred), targets)
    assert losses['loss_noobj'] > 0
    assert all(value == 0 for name, value in losses.items() if name != 'loss_noobj')
    (gradient,) = torch.autograd.grad(sum(losses.values()), pred)
    assert gradient.isfinite().all()


def test_factors():
    pred = predictions(1, (4, 3), 2, 3, 0.5).detach()
    boxes = [torch.tensor(BOXES[0], dtype=torch.float64)]
    targets = grid_targets(boxes, [torch.tensor(LABELS[0])], (4, 3), STRIDE)
    parts = head(2).split(pred)
    plain = YOLOV1Loss()(*parts, targets)
    found = YOLOV1Loss(coord_weight=10, noobj_weight=0.25, loss_weight=3)(*parts, targets)
    ratios = {name: float(found[name] / plain[name]) for name in plain}
    assert ratios == pytest.approx(
        dict(loss_centre=6, loss_size=6, loss_object=3, loss_noobj=1.5, loss_class=3)
    )


@pytest.mark.parametrize('name', ['coord_weight', 'noobj_weight', 'loss_weight'])
def test_factors_that_are_refused(name):
    with pytest.raises(LocalLearningError, match=rf'{name}=0: give a finite number greater than 0'):
        MODELS.build(dict(type='YOLOV1Loss', **{name: 0}))
