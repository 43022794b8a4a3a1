"""NMS through mmcv's public functions against loops over pairs of boxes."""

import math
import sys

import numpy as np
import pytest
import torch

from fba_mm.compat import install_mmcv_ops, nms_ops

install_mmcv_ops()

from mmcv.ops import batched_nms, nms, nms_match, soft_nms  # noqa: E402


@pytest.fixture(autouse=True)
def answered_here(monkeypatch):
    # Holds on a machine with compiled mmcv as well.
    monkeypatch.setattr(sys.modules['mmcv.ops.nms'], 'ext_module', nms_ops)


def make_boxes(count, seed, extent=40.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    size = torch.rand(count, 2, generator=generator) * extent / 2 + 1
    scores = (torch.randperm(count, generator=generator) + 1.0) / (count + 1)
    return torch.cat((corner, corner + size), dim=1), scores


def iou(a, b, offset=0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = sum(area) - inter
    return inter / union if union else 0.0


def nms_reference(boxes, scores, threshold, offset=0):
    boxes, scores = boxes.tolist(), scores.tolist()
    kept = []
    for candidate in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[candidate], boxes[k], offset) <= threshold for k in kept):
            kept.append(candidate)
    return kept


def soft_nms_reference(boxes, scores, threshold, sigma, min_score, method, offset):
    """Figure 2 of Bodla et al. (2017); boxes below ``min_score`` are dropped in every round."""
    boxes, remaining = boxes.tolist(), dict(enumerate(scores.tolist()))
    order, decayed = [], []
    while remaining:
        best = max(remaining, key=remaining.get)
        order.append(best)
        decayed.append(remaining.pop(best))
        for i in list(remaining):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                remaining[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                remaining[i] *= 1 - overlap if method == 'linear' else 0
            if remaining[i] < min_score:
                del remaining[i]
    return order, decayed


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5])
def test_nms(device, threshold, offset):
    boxes, scores = make_boxes(60, seed=0, extent=12.0)
    expected = nms_reference(boxes, scores, threshold, offset)
    assert 2 < len(expected) < 60
    dets, kept = nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert kept.tolist() == expected
    assert dets.device.type == device
    torch.testing.assert_close(dets.cpu(), torch.cat((boxes, scores[:, None]), 1)[expected])


def test_offset_decides():
    boxes = torch.tensor(
        [[0.0, 0.0, 3.0, 3.0], [2.0, 0.0, 5.0, 3.0]]
    )  # IoU 1/5, with the last pixel 1/3
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.25, offset=0)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.25, offset=1)[1].tolist() == [0]


def test_nms_keeps_a_box_at_the_threshold():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.49)[1].tolist() == [0]


def test_documented_example():
    """The example in mmcv's docstring, which the compiled op answers with three boxes."""
    boxes = np.array(
        [
            [49.1, 32.4, 51.0, 35.9],
            [49.3, 32.9, 51.0, 35.3],
            [49.2, 31.8, 51.0, 35.4],
            [35.1, 11.5, 39.1, 15.7],
            [35.6, 11.8, 39.3, 14.2],
            [35.3, 11.5, 39.9, 14.5],
            [35.2, 11.7, 39.7, 15.7],
        ],
        dtype=np.float32,
    )
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.4, 0.3], dtype=np.float32)
    dets, kept = nms(boxes, scores, 0.6)
    assert isinstance(dets, np.ndarray) and len(dets) == len(kept) == 3


def test_documented_soft_example():
    boxes = np.array(
        [
            [4.0, 3.0, 5.0, 3.0],
            [4.0, 3.0, 5.0, 4.0],
            [3.0, 1.0, 3.0, 1.0],
            [3.0, 1.0, 3.0, 1.0],
            [3.0, 1.0, 3.0, 1.0],
            [3.0, 1.0, 3.0, 1.0],
        ],
        dtype=np.float32,
    )
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], dtype=np.float32)
    for method in ('linear', 'gaussian', 'naive'):
        dets, kept = soft_nms(boxes, scores, 0.6, sigma=0.5, method=method)
        assert len(dets) == len(kept) == 5 and np.isfinite(dets).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_precisions(device, dtype):
    boxes, scores = make_boxes(20, seed=1)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    kept = nms(boxes.to(device), scores.to(device), 0.3)[1]
    assert kept.tolist() == nms_reference(boxes, scores, 0.3)


def test_nms_of_nothing(device):
    dets, kept = nms(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64


def test_score_threshold_and_max_num(device):
    boxes, scores = make_boxes(40, seed=2)
    kept = nms(boxes.to(device), scores.to(device), 0.5, score_threshold=0.4, max_num=5)[1]
    expected = [i for i in nms_reference(boxes, scores, 0.5) if scores[i] > 0.4][:5]
    assert kept.tolist() == expected


@pytest.mark.parametrize('split_thr', [10000, 10])
def test_batched_nms_treats_classes_apart(device, split_thr):
    boxes, scores = make_boxes(50, seed=3, extent=12.0)
    classes = torch.arange(50) % 3
    _, kept = batched_nms(
        boxes.to(device),
        scores.to(device),
        classes.to(device),
        dict(type='nms', iou_threshold=0.3, split_thr=split_thr),
    )
    expected = []
    for number in range(3):
        own = (classes == number).nonzero()[:, 0]
        expected += own[nms_reference(boxes[own], scores[own], 0.3)].tolist()
    assert len(expected) < 50
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i])


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(device, method, offset):
    boxes, scores = make_boxes(40, seed=4, extent=12.0)
    boxes, scores = boxes.double(), scores.double()
    settings = dict(sigma=0.4, min_score=0.15, method=method, offset=offset)
    dets, kept = soft_nms(boxes.to(device), scores.to(device), 0.3, **settings)
    order, decayed = soft_nms_reference(boxes, scores, 0.3, **settings)
    assert 2 < len(order) < 40
    assert kept.tolist() == order
    assert dets.device.type == device
    torch.testing.assert_close(
        dets.cpu(), torch.cat((boxes[order], torch.tensor(decayed).double()[:, None]), 1)
    )


def test_soft_nms_takes_the_best_box_whatever_its_score():
    boxes, _ = make_boxes(3, seed=5)
    _, kept = soft_nms(boxes, torch.tensor([0.1, 0.3, 0.2]), min_score=0.5)
    assert kept.tolist() == [1]


def test_soft_nms_breaks_ties_like_an_in_place_removal():
    corner = torch.arange(6.0) * 10
    boxes = torch.stack((corner, corner, corner + 5, corner + 5), dim=1)  # apart: nothing decays
    scores = torch.tensor([0.9, 0.1, 0.1, 0.5, 0.5, 0.5])
    # Boxes 1 and 2 are dropped; the last box moves to the first gap, the one before to the second.
    assert soft_nms(boxes, scores, min_score=0.2)[1].tolist() == [0, 5, 4, 3]


def test_soft_nms_leaves_its_inputs_alone():
    boxes, scores = make_boxes(20, seed=6)
    before = boxes.clone(), scores.clone()
    soft_nms(boxes, scores)
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_soft_nms_in_half_precision(dtype):
    boxes, scores = make_boxes(10, seed=7)
    dets, kept = soft_nms(boxes.to(dtype), scores.to(dtype))
    wide, expected = soft_nms(boxes.to(dtype).float(), scores.to(dtype).float())
    assert kept.tolist() == expected.tolist()
    torch.testing.assert_close(dets, wide.to(dtype))


def test_soft_nms_of_nothing():
    dets, kept = soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.tolist() == []


def test_nms_match(device):
    boxes, scores = make_boxes(30, seed=8, extent=12.0)
    groups = nms_match(torch.cat((boxes, scores[:, None]), 1).to(device), 0.3)
    free, expected = sorted(range(30), key=lambda i: -scores[i]), []
    while free:
        best, rest = free[0], free[1:]
        close = [i for i in rest if iou(boxes[best].tolist(), boxes[i].tolist()) >= 0.3]
        expected.append([best] + close)
        free = [i for i in rest if i not in close]
    assert [group.tolist() for group in groups] == expected
