"""YOLOv1's head: shapes, decoding, scores, and what is refused."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from fba_mm import LocalLearningError
from fba_mm.models.yolov1 import YOLOV1Head, grid_targets

TEST_CFG = ConfigDict(
    score_thr=0.1,
    nms_pre=100,
    min_bbox_size=0,
    nms=dict(type='nms', iou_threshold=0.5),
    max_per_img=10,
)


def head(**settings) -> YOLOV1Head:
    return YOLOV1Head(
        **dict(dict(num_classes=3, in_channels=8, feat_channels=8, test_cfg=TEST_CFG), **settings)
    )


@pytest.mark.parametrize('stride, grid', [(32, (6, 4)), (64, (3, 2))])
def test_shapes(stride, grid):
    built = head(stride=stride, num_boxes=3)
    (preds,) = built((torch.rand(2, 4, 9, 9), torch.rand(2, 8, 6, 4)))  # The last map counts.
    assert [pred.shape for pred in preds] == [(2, 3 * 5 + 3, *grid)]
    boxes, confidences, classes = built.split(preds[0])
    assert boxes.shape == (2, *grid, 3, 4) and confidences.shape == (2, *grid, 3)
    assert classes.shape == (2, *grid, 3)
    # Each number belongs to one part.
    pred = torch.arange(18.0).view(1, 18, 1, 1)
    boxes, confidences, classes = built.split(pred)
    assert confidences.flatten().tolist() == [4, 9, 14]
    assert boxes[0, 0, 0, 1].tolist() == [5, 6, 7, 8]
    assert classes.flatten().tolist() == [15, 16, 17]


def test_decoding_undoes_targets():
    boxes = torch.tensor([[10.0, 20, 90, 60], [100, 5, 120, 95]])
    targets = grid_targets([boxes], [torch.tensor([0, 1])], (3, 4), 32)
    perfect = targets.boxes.clone()
    perfect[..., 2:] = perfect[..., 2:].sqrt()
    decoded = head().decode(perfect[..., None, :])[..., 0, :]
    cells = [(1, 1), (1, 3)]
    for box, (row, column) in zip(boxes, cells):
        torch.testing.assert_close(decoded[0, row, column], box)


def _raw(cells: dict) -> torch.Tensor:
    """Raw predictions, (1, 13, 2, 2): ``cells[row, column] = [box, box, classes]``."""
    pred = torch.zeros(1, 13, 2, 2)
    for (row, column), parts in cells.items():
        pred[0, :, row, column] = torch.tensor([number for part in parts for number in part])
    return pred


def test_detections():
    """Scores are confidence · class; lesser boxes of the same class and place go, mmdet's way."""
    nothing = [0.0, 0, 0, 0, 0]
    pred = _raw(
        {
            (0, 0): [[0.5, 0.5, 0.5, 0.5, 0.9], [0.5, 0.5, 0.52, 0.5, 0.8], [1.5, 0.5, -1.0]],
            (1, 1): [[0.5, 0.5, 0.5, 0.5, 0.5], nothing, [0.1, 0.0, 0.7]],
        }
    )
    metas = [dict(img_shape=(64, 64), scale_factor=(0.5, 0.25))]
    (found,) = head().predict_by_feat([pred], metas)
    # 1.5 counts as certain. 0.9 · 0.5 has another class than 0.9 · 1 in the same place.
    assert found.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.45, 0.35]))
    torch.testing.assert_close(
        found.bboxes, torch.tensor([[8.0, 8, 24, 24], [8, 8, 24, 24], [40, 40, 56, 56]])
    )
    (rescaled,) = head().predict_by_feat([pred], metas, rescale=True)
    torch.testing.assert_close(rescaled.bboxes, found.bboxes * torch.tensor([2.0, 4, 2, 4]))
    (everything,) = head().predict_by_feat([pred], metas, with_nms=False)
    assert len(everything) == 5
    (few,) = head().predict_by_feat([pred], metas, cfg=ConfigDict(TEST_CFG, max_per_img=1))
    assert few.scores.tolist() == pytest.approx([0.9])


def test_boxes_end_where_the_image_does():
    pred = _raw({(1, 0): [[0.0, 1.0, 1.0, 1.4, 1.0], [0.0] * 5, [1.0, 0, 0]]})
    (found,) = head().predict_by_feat([pred], [dict(img_shape=(60, 50))])
    assert found.bboxes.tolist() == [[0, 1.28, 32, 60]] or torch.allclose(
        found.bboxes, torch.tensor([[0.0, 1.28, 32, 60]]), atol=1e-4
    )


def test_no_detections():
    (found,) = head().predict_by_feat([torch.zeros(1, 13, 2, 2)], [dict(img_shape=(64, 64))])
    assert len(found) == 0 and found.bboxes.shape == (0, 4)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(stride=48), 'stride=48.*multiple of in_stride=32'),
        (dict(stride=16), 'stride=16.*multiple of in_stride=32'),
        (dict(num_boxes=0), 'num_boxes=0: give an integer from 1'),
        (dict(num_classes=0), 'num_classes=0: give an integer from 1'),
        (dict(stacked_convs=0), 'stacked_convs=0: give an integer from 1'),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        MODELS.build(dict(dict(type='YOLOV1Head', num_classes=3, in_channels=8), **settings))
    assert '\n' not in str(caught.value)


def test_labels_beyond_the_classes():
    instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 9, 9]]), labels=torch.tensor([3]))
    with pytest.raises(LocalLearningError, match='class index 3, but num_classes=3'):
        head().loss_by_feat([torch.zeros(1, 13, 2, 2)], [instances], [{}])
