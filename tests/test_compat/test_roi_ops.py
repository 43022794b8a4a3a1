"""RoIAlign and RoIPool through mmcv's public modules against loops over bins and samples."""

import math
import sys

import pytest
import torch

from fba_mm.compat import install_mmcv_ops, roi_ops

install_mmcv_ops()

from mmcv.ops import RoIAlign, RoIPool  # noqa: E402

BINS = (2, 3)
SCALE = 0.5


@pytest.fixture(autouse=True)
def answered_here(monkeypatch):
    for name in ('roi_align', 'roi_pool'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', roi_ops)


def make_inputs(device, dtype=torch.float64):
    features = torch.randn(
        2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    rois = torch.tensor(
        [
            [0, 1.3, 2.1, 9.7, 8.6],
            [1, 0.2, 0.4, 13.1, 11.3],  # the whole map
            [0, -4.1, -3.3, 4.2, 18.9],  # over the border on three sides
            [1, 3.7, 4.4, 4.1, 4.9],  # inside a pixel
            [0, 40.0, 40.0, 50.0, 50.0],  # outside
        ],
        dtype=torch.float64,
    )
    return features.to(device, dtype).requires_grad_(), rois.to(device, dtype)


def bilinear(plane, y, x):
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.sum() * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        (1 - dy) * (1 - dx) * plane[top, left]
        + (1 - dy) * dx * plane[top, right]
        + dy * (1 - dx) * plane[bottom, left]
        + dy * dx * plane[bottom, right]
    )


def roi_align_reference(features, rois, sampling_ratio, mode, aligned):
    outputs = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = [side * SCALE - (0.5 if aligned else 0) for side in box]
        size_y, size_x = y2 - y1, x2 - x1
        if not aligned:
            size_y, size_x = max(size_y, 1), max(size_x, 1)
        bin_y, bin_x = size_y / BINS[0], size_x / BINS[1]
        grid_y, grid_x = sampling_ratio or math.ceil(bin_y), sampling_ratio or math.ceil(bin_x)
        for plane in features[int(image)]:
            for row in range(BINS[0]):
                for column in range(BINS[1]):
                    samples = [
                        bilinear(
                            plane,
                            y1 + (row + (i + 0.5) / grid_y) * bin_y,
                            x1 + (column + (j + 0.5) / grid_x) * bin_x,
                        )
                        for i in range(grid_y)
                        for j in range(grid_x)
                    ]
                    total = torch.stack(samples)
                    outputs.append(total.mean() if mode == 'avg' else total.max())
    return torch.stack(outputs).view(len(rois), -1, *BINS)


def roi_pool_reference(features, rois):
    outputs = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = [side * SCALE for side in (box[0], box[1], box[2] + 1, box[3] + 1)]
        bin_y, bin_x = (y2 - y1) / BINS[0], (x2 - x1) / BINS[1]
        for plane in features[int(image)]:
            height, width = plane.shape
            for row in range(BINS[0]):
                for column in range(BINS[1]):
                    top, bottom = math.floor(y1 + row * bin_y), math.ceil(y1 + (row + 1) * bin_y)
                    left = math.floor(x1 + column * bin_x)
                    right = math.ceil(x1 + (column + 1) * bin_x)
                    pixels = [
                        plane[y, x]
                        for y in range(max(top, 0), min(bottom, height))
                        for x in range(max(left, 0), min(right, width))
                    ]
                    outputs.append(torch.stack(pixels).max() if pixels else plane.sum() * 0)
    return torch.stack(outputs).view(len(rois), -1, *BINS)


def assert_same(actual, expected, features):
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(actual.shape, dtype=actual.dtype).to(actual.device)
    (wanted,) = torch.autograd.grad(expected, features, grad)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(torch.autograd.grad(actual, features, grad)[0], wanted)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align(device, mode, sampling_ratio, aligned):
    features, rois = make_inputs(device)
    layer = RoIAlign(BINS, SCALE, sampling_ratio, mode, aligned)
    expected = roi_align_reference(features, rois, sampling_ratio, mode, aligned)
    assert_same(layer(features, rois), expected, features)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradient_by_matrices(sampling_ratio, aligned):
    """The way that deterministic algorithms take on a GPU."""
    features, rois = make_inputs('cpu')
    expected = roi_align_reference(features, rois, sampling_ratio, 'avg', aligned)
    grad = torch.randn_like(expected)
    actual = roi_ops._roi_align_gradient_by_matrices(
        grad, rois, features.shape, BINS, SCALE, sampling_ratio, aligned
    )
    torch.testing.assert_close(actual, torch.autograd.grad(expected, features, grad)[0])


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_under_deterministic_algorithms(device, mode, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    features, rois = make_inputs(device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        actual = RoIAlign(BINS, SCALE, 2, mode)(features, rois)
        assert_same(actual, roi_align_reference(features, rois, 2, mode, True), features)
    finally:
        torch.use_deterministic_algorithms(before)


def test_region_without_area(device):
    features, _ = make_inputs(device)
    rois = torch.tensor([[0, 4.0, 4.0, 4.0, 4.0]], dtype=features.dtype, device=device)
    for mode in ('avg', 'max'):
        output = RoIAlign(BINS, SCALE, 0, mode)(features, rois)
        assert output.abs().max() == 0
        assert torch.autograd.grad(output.sum(), features)[0].abs().max() == 0
    rois[0, 3:] = 2.0  # mirrored
    output = RoIPool(BINS, SCALE)(features, rois)
    assert output.abs().max() == 0
    assert torch.autograd.grad(output.sum(), features)[0].abs().max() == 0


def test_roi_pool(device):
    features, rois = make_inputs(device)
    assert_same(RoIPool(BINS, SCALE)(features, rois), roi_pool_reference(features, rois), features)


LAYERS = [RoIAlign(BINS, SCALE), RoIAlign(BINS, SCALE, pool_mode='max'), RoIPool(BINS, SCALE)]


@pytest.mark.parametrize('layer', LAYERS, ids=['avg', 'max', 'pool'])
def test_slices_change_nothing(device, layer, monkeypatch):
    features, rois = make_inputs(device)
    results = []
    for size in (roi_ops._SLICE, 700, 1):
        monkeypatch.setattr(roi_ops, '_SLICE', size)
        output = layer(features, rois)
        results.append((output, torch.autograd.grad(output.square().sum(), features)[0]))
    for output, grad in results[1:]:
        torch.testing.assert_close(output, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


@pytest.mark.parametrize('layer', LAYERS, ids=['avg', 'max', 'pool'])
def test_no_regions(device, layer):
    features, rois = make_inputs(device)
    output = layer(features, rois[:0])
    assert output.shape == (0, 3) + BINS
    assert torch.autograd.grad(output.sum(), features)[0].abs().max() == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layer', LAYERS, ids=['avg', 'max', 'pool'])
def test_half_precision(device, layer, dtype):
    narrow, rois = make_inputs(device, dtype)
    wide = narrow.detach().double().requires_grad_()
    output, expected = layer(narrow, rois), layer(wide, rois.double())
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype))
    # The maximum mode keeps the place of a maximum in the features' own precision.
    tolerance = 0.1 if getattr(layer, 'pool_mode', '') == 'max' else 0.01
    torch.testing.assert_close(
        torch.autograd.grad(output.sum(), narrow)[0].double(),
        torch.autograd.grad(expected.sum(), wide)[0],
        rtol=tolerance,
        atol=tolerance,
    )
