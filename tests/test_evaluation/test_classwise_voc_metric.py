"""The AP of each class, in PASCAL VOC's way."""

import numpy as np
import pytest

from fba_mm.evaluation import ClasswiseVOCMetric

CLASSES = ('cat', 'dog', 'owl')


def _image(objects: dict, detections: dict):
    """Boxes of each class, as the metric collects them; scores follow the boxes of detections."""
    boxes = [(box, label) for label, each in objects.items() for box in each]
    none = np.zeros((0, 4), dtype=np.float32)
    truth = dict(
        labels=np.array([label for _, label in boxes], dtype=np.int64),
        bboxes=np.array([box for box, _ in boxes], dtype=np.float32).reshape(-1, 4),
        bboxes_ignore=none,
        labels_ignore=np.zeros(0, dtype=np.int64),
    )
    found = [
        np.array(detections.get(label, ()), dtype=np.float32).reshape(-1, 5)
        for label in range(len(CLASSES))
    ]
    return truth, found


@pytest.mark.parametrize('mode, half', [('area', 0.5), ('11points', 6 / 11)])
def test_each_class(mode, half):
    one, two = (0, 0, 10, 10), (20, 20, 40, 40)
    results = [
        # All cats; one of two dogs; an owl in the wrong place.
        _image(
            {0: [one], 1: [one, two], 2: [two]},
            {0: [(*one, 0.9)], 1: [(*two, 0.8)], 2: [(*one, 0.9)]},
        ),
        _image({0: [two]}, {0: [(*two, 0.7)]}),
    ]
    metric = ClasswiseVOCMetric(eval_mode=mode)
    metric.dataset_meta = dict(classes=CLASSES)
    found = metric.compute_metrics(results)
    assert found['cat_AP'] == pytest.approx(1) and found['owl_AP'] == 0
    assert found['dog_AP'] == pytest.approx(half)
    assert found['mAP'] == pytest.approx((1 + half) / 3, abs=1e-6)
    assert found['AP50'] == round(found['mAP'], 3)


def test_recall_is_left_as_it_is():
    metric = ClasswiseVOCMetric(metric='recall', proposal_nums=(10,))
    metric.dataset_meta = dict(classes=CLASSES)
    box = (0.0, 0, 10, 10)
    found = metric.compute_metrics([_image({0: [box]}, {0: [(*box, 0.9)]})])
    assert found == {'recall@10@0.5': 1.0}
