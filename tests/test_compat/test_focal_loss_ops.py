"""Focal losses through mmcv's public functions against the papers' formulas."""

import sys

import pytest
import torch

from fba_mm.compat import focal_loss_ops, install_mmcv_ops
from fba_mm.errors import LocalLearningError

install_mmcv_ops()

from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss  # noqa: E402


@pytest.fixture(autouse=True)
def answered_here(monkeypatch):
    monkeypatch.setattr(sys.modules['mmcv.ops.focal_loss'], 'ext_module', focal_loss_ops)


def sigmoid_reference(logits, target, gamma, alpha, weight):
    """-a_t (1 - p_t)^gamma log(p_t), one element after the other."""
    losses = []
    for row, label in zip(logits, target.tolist()):
        for column, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            p_t, alpha_t = (p, alpha) if column == label else (1 - p, 1 - alpha)
            loss = -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)
            if weight is not None and 0 <= label < len(row):
                loss = loss * weight[label]
            losses.append(loss)
    return torch.stack(losses).view_as(logits)


def softmax_reference(logits, target, gamma, alpha, weight):
    losses = []
    for row, label in zip(logits, target.tolist()):
        if label < 0:
            losses.append(row.sum() * 0)
            continue
        p = torch.exp(row[label]) / torch.exp(row).sum()
        loss = -alpha * (1 - p) ** gamma * torch.log(p)
        losses.append(loss if weight is None else loss * weight[label])
    return torch.stack(losses)


def make_batch(device, rows=7, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    target = torch.arange(rows) % (classes + 1)  # the last one is background
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
    return logits.to(device).requires_grad_(), target.to(device), weight.to(device)


def assert_same_gradient(loss, expected, logits):
    grad = torch.randn(loss.shape, dtype=loss.dtype).to(loss.device)
    (actual,) = torch.autograd.grad(loss, logits, grad)
    (wanted,) = torch.autograd.grad(expected, logits, grad)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5), (1.0, 0.75)])
def test_sigmoid_focal_loss(device, gamma, alpha, weighted):
    logits, target, weight = make_batch(device)
    weight = weight if weighted else None
    loss = sigmoid_focal_loss(logits, target, gamma, alpha, weight, 'none')
    expected = sigmoid_reference(logits, target, gamma, alpha, weight)
    torch.testing.assert_close(loss, expected)
    assert_same_gradient(loss, expected, logits)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_reductions(device, reduction):
    logits, target, _ = make_batch(device)
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, reduction)
    expected = sigmoid_reference(logits, target, 2.0, 0.25, None).sum()
    if reduction == 'mean':
        expected = expected / len(logits)
    torch.testing.assert_close(loss, expected)
    assert_same_gradient(loss, expected, logits)


def test_negative_label_is_background(device):
    logits, target, weight = make_batch(device)
    a = sigmoid_focal_loss(logits, torch.full_like(target, -1), 2.0, 0.25, weight, 'none')
    b = sigmoid_focal_loss(logits, torch.full_like(target, 5), 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(a, b)


def test_slices_change_nothing(device, monkeypatch):
    logits, target, weight = make_batch(device)
    results = []
    for size in (focal_loss_ops._SLICE, 11, 1):
        monkeypatch.setattr(focal_loss_ops, '_SLICE', size)
        loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
        results.append((loss, torch.autograd.grad(loss.sum(), logits)[0]))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


def test_confident_logits_stay_finite_and_linear(device):
    logits = torch.tensor([[60.0, -60.0]], device=device, requires_grad=True)
    target = torch.tensor([1], device=device)  # both are wrong
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss.cpu(), torch.tensor([[45.0, 15.0]]))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad.cpu(), torch.tensor([[0.75, -0.25]]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(device, dtype):
    logits, target, _ = make_batch(device)
    narrow = logits.detach().to(dtype).requires_grad_()
    wide = narrow.detach().double().requires_grad_()
    for function in (sigmoid_focal_loss, softmax_focal_loss):
        labels = target.clamp(max=4)
        loss = function(narrow, labels, 2.0, 0.25, None, 'sum')
        expected = function(wide, labels, 2.0, 0.25, None, 'sum')
        assert loss.dtype == dtype
        tolerance = dict(rtol=0.03, atol=0.01)
        torch.testing.assert_close(loss.double(), expected, **tolerance)
        torch.testing.assert_close(
            torch.autograd.grad(loss, narrow)[0].double(),
            torch.autograd.grad(expected, wide)[0],
            **tolerance,
        )


def test_too_large_label_names_the_mend(device):
    logits, target, _ = make_batch(device)
    with pytest.raises(LocalLearningError, match='label 6 with 5 logits.*num_classes'):
        sigmoid_focal_loss(logits, target + 1, 2.0, 0.25, None, 'none')


def test_no_rows(device):
    logits = torch.zeros(0, 5, device=device, requires_grad=True)
    loss = sigmoid_focal_loss(
        logits, torch.zeros(0, dtype=torch.long, device=device), 2.0, 0.25, None, 'sum'
    )
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 5)


@pytest.mark.parametrize('gamma', [2.0, 0.5, 0.0])
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss(device, weighted, gamma):
    logits, target, weight = make_batch(device)
    target = target - 1  # the first row is ignored
    weight = weight if weighted else None
    loss = softmax_focal_loss(logits, target, gamma, 0.25, weight, 'mean')
    expected = softmax_reference(logits, target, gamma, 0.25, weight).sum() / len(logits)
    torch.testing.assert_close(loss, expected)
    assert_same_gradient(loss, expected, logits)
    rows = softmax_focal_loss(logits, target, gamma, 0.25, weight, 'none')
    torch.testing.assert_close(rows, softmax_reference(logits, target, gamma, 0.25, weight))


@pytest.mark.parametrize('gamma', [2.0, 0.5])
def test_softmax_certain_of_the_target(device, gamma):
    logits = torch.tensor([[500.0, 0.0]], device=device, requires_grad=True)
    target = torch.tensor([0], device=device)
    loss = softmax_focal_loss(logits, target, gamma, 0.25, None, 'sum')
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


def test_equals_the_loss_that_mmdet_uses_on_cpu(device):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, target, _ = make_batch(device)
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5]
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction='none')
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, expected)
    assert_same_gradient(loss, expected, logits)
