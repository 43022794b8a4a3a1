"""The loss in slices against mmdet's, and against the formula of the paper."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss
from mmengine.registry import MODELS

from fba_mm import LocalLearningError, SlicedFocalLoss
from fba_mm.analysis import StorageTracker

from ..conftest import needs_float16

ROWS, CLASSES = 23, 5
# 4 rows of float64 logits: the last of six slices is a part of one.
SLICE = 4 * CLASSES * 8

TARGETS = dict(
    labels=lambda: torch.randint(0, CLASSES + 1, (ROWS,)),
    background=lambda: torch.full((ROWS,), CLASSES),
    one_hot=lambda: torch.eye(CLASSES + 1).long()[torch.arange(ROWS) % (CLASSES + 1), :-1],
    shares=lambda: torch.rand(ROWS, CLASSES).double(),
)
WEIGHTS = dict(
    none=lambda: None,
    rows=lambda: torch.rand(ROWS),
    column=lambda: torch.rand(ROWS, 1).double(),
    each=lambda: torch.rand(ROWS, CLASSES).double(),
    flat=lambda: torch.rand(ROWS * CLASSES),
    counts=lambda: torch.randint(0, 2, (ROWS,)),
)
REDUCTIONS = {
    'mean': dict(reduction_override='mean'),
    'mean of 7': dict(avg_factor=7),
    'mean of tensor': dict(avg_factor=torch.tensor(3.0)),
    'mean of nothing': dict(avg_factor=0.0),
    'sum': dict(reduction_override='sum'),
    'none': dict(reduction_override='none'),
    'none, avg_factor': dict(reduction_override='none', avg_factor=7),
}


def logits(rows: int = ROWS, classes: int = CLASSES, scale: float = 3.0, **kwargs) -> torch.Tensor:
    place = dict(dict(dtype=torch.float64), **kwargs)
    return (torch.randn(rows, classes) * scale).to(**place).requires_grad_()


def gradient(loss: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
    """With an incoming gradient that is neither 1 nor the same everywhere."""
    incoming = torch.linspace(0.5, 2, loss.numel()).view_as(loss).to(loss)
    return torch.autograd.grad(loss, pred, incoming, retain_graph=True)[0]


def reference(pred, target, weight=None, gamma=2.0, alpha=0.25) -> torch.Tensor:
    """-alpha_t (1 - p_t)^gamma log(p_t) of class indices, one logit after the other, summed."""
    total = 0.0
    for i, label in enumerate(target.tolist()):
        for j in range(pred.size(1)):
            p = 1 / (1 + torch.exp(-pred[i, j]))
            p_t, alpha_t = (p, alpha) if j == label else (1 - p, 1 - alpha)
            term = -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)
            total = total + (term if weight is None else term * weight[i])
    return total


# Values and gradients


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('weight', WEIGHTS)
@pytest.mark.parametrize('target', TARGETS)
def test_equals_mmdets(target, weight, reduction):
    settings = dict(use_sigmoid=True, gamma=1.5, alpha=0.3, loss_weight=2.0)
    pred, target, weight = logits(), TARGETS[target](), WEIGHTS[weight]()
    arguments = (pred, target, weight)
    expected = FocalLoss(**settings)(*arguments, **REDUCTIONS[reduction])
    loss = SlicedFocalLoss(**settings, slice_bytes=SLICE)(*arguments, **REDUCTIONS[reduction])
    assert loss.shape == expected.shape and loss.dtype == expected.dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, pred), gradient(expected, pred))


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_defaults_equal_mmdets(reduction):
    pred, target = logits(dtype=torch.float32), TARGETS['labels']()
    loss = SlicedFocalLoss(reduction=reduction)(pred, target)
    expected = FocalLoss(reduction=reduction)(pred, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, pred), gradient(expected, pred))


@pytest.mark.parametrize('gamma, alpha', [(0.0, 0.5), (0.5, 0.6), (1.0, 0.75), (2.0, 0.25)])
def test_equals_the_papers_formula(device, gamma, alpha):
    pred = logits(rows=7, device=device)
    target, weight = (torch.arange(7) % (CLASSES + 1)).to(device), torch.rand(7).double().to(device)
    module = SlicedFocalLoss(gamma=gamma, alpha=alpha, reduction='sum', slice_bytes=SLICE)
    loss, expected = module(pred, target, weight), reference(pred, target, weight, gamma, alpha)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, pred), gradient(expected, pred))
    assert torch.autograd.gradcheck(lambda x: module(x, target, weight), pred)
    shares = torch.rand_like(pred)
    assert torch.autograd.gradcheck(lambda x: module(x, shares, weight), pred)


@pytest.mark.parametrize('what', ['weight', 'target'])
def test_gradients_of_other_arguments(what):
    pred, arguments = logits(), dict(target=TARGETS['shares'](), weight=WEIGHTS['each']())
    arguments[what].requires_grad_()
    loss = SlicedFocalLoss(slice_bytes=SLICE)(pred, **arguments)
    expected = FocalLoss()(pred, **arguments)
    for of in (arguments[what], pred):
        torch.testing.assert_close(gradient(loss, of), gradient(expected, of))


@pytest.mark.parametrize('layout', ['maps', 'expanded', 'strided'])
def test_any_memory_layout(layout):
    raw = (
        dict(
            maps=torch.randn(2, CLASSES, 4, 3),
            expanded=torch.randn(1, CLASSES),
            strided=torch.randn(24, 2 * CLASSES),
        )[layout]
        .double()
        .requires_grad_()
    )
    pred = dict(
        maps=lambda: raw.permute(0, 2, 3, 1).reshape(-1, CLASSES),
        expanded=lambda: raw.expand(24, -1),
        strided=lambda: raw[:, ::2],
    )[layout]()
    target = torch.randint(0, CLASSES + 1, (24,))
    loss, expected = SlicedFocalLoss(slice_bytes=SLICE)(pred, target), FocalLoss()(pred, target)
    torch.testing.assert_close(gradient(loss, raw), gradient(expected, raw))


def test_arguments_are_not_written_to_and_a_graph_may_run_twice():
    pred, target, weight = logits(), TARGETS['labels'](), WEIGHTS['rows']()
    before = [t.detach().clone() for t in (pred, target, weight)]
    loss = SlicedFocalLoss(slice_bytes=SLICE)(pred, target, weight)
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(loss, pred)[0])
    assert all(torch.equal(a, b) for a, b in zip((pred, target, weight), before))


def test_no_second_derivative():
    pred = logits()
    loss = SlicedFocalLoss()(pred, TARGETS['labels']())
    with pytest.raises(LocalLearningError, match="no second derivative, .*'mmdet.FocalLoss'"):
        torch.autograd.grad(loss, pred, create_graph=True)


# Numbers at the edge


@pytest.mark.parametrize('reduction', ['sum', 'none'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('size', [100.0, 1e4])
@pytest.mark.parametrize('form', ['labels', 'one_hot'])
def test_extreme_logits(form, size, gamma, reduction):
    pred = torch.tensor([[size, -size], [size, -size], [-size, size]], requires_grad=True)
    target = torch.tensor([2, 0, 0])  # background, right, wrong twice
    if form == 'one_hot':
        target = torch.eye(3)[target, :2]
    loss = SlicedFocalLoss(gamma=gamma, reduction=reduction)(pred, target).sum()
    torch.testing.assert_close(loss, torch.tensor((0.75 + 0.25 + 0.75) * size))
    loss.backward()
    torch.testing.assert_close(pred.grad, torch.tensor([[0.75, 0], [0, 0], [-0.25, 0.75]]))


@pytest.mark.parametrize('label, sign, alpha', [(0, 1, 0.25), (1, -1, 0.75)])
def test_precision_of_confident_logits(label, sign, alpha):
    """float32 is right to its last digits where a formula with 1 - p has none left."""
    pred = torch.linspace(-30, 30, 61).view(-1, 1).requires_grad_()
    exact = pred.detach().double().requires_grad_()
    expected = -alpha * (-sign * exact).sigmoid() ** 2 * F.logsigmoid(sign * exact)
    module, target = SlicedFocalLoss(reduction='sum'), torch.tensor([label])
    losses = torch.stack([module(row[None], target) for row in pred])
    torch.testing.assert_close(losses.double(), expected[:, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        gradient(losses.sum(), pred).double(), gradient(expected.sum(), exact), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('weight', [None, torch.zeros(0)])
@pytest.mark.parametrize('target', [torch.zeros(0, dtype=torch.long), torch.zeros(0, CLASSES)])
def test_no_rows(target, weight):
    for settings in REDUCTIONS.values():
        pred = logits(rows=0)
        loss = SlicedFocalLoss()(pred, target, weight, **settings)
        expected = FocalLoss()(pred, target, weight, **settings)
        torch.testing.assert_close(loss, expected, equal_nan=True)
        assert gradient(loss, pred).shape == (0, CLASSES)


@pytest.mark.parametrize('target', ['labels', 'shares'])
@pytest.mark.parametrize(
    'dtype, autocast',
    [
        (torch.bfloat16, False),
        (torch.bfloat16, True),
        (torch.float16, False),
        pytest.param(torch.float16, True, marks=needs_float16),
    ],
)
def test_half_precision(dtype, autocast, target, device):
    pred, target = logits(dtype=dtype, device=device), TARGETS[target]().to(device)
    weight = torch.rand(ROWS, device=device)
    like = pred.detach().float().requires_grad_()
    with torch.autocast(device, dtype=dtype) if autocast else nullcontext():
        loss = SlicedFocalLoss(slice_bytes=SLICE)(pred, target, weight, avg_factor=1e3)
    expected = FocalLoss()(like.cpu(), target.cpu(), weight.cpu(), avg_factor=1e3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu(), expected)
    # Below the least fp16 number until the loss is scaled up, as a GradScaler does.
    (loss * 2**12).backward()
    (expected * 2**12).backward()
    assert pred.grad.dtype == dtype
    torch.testing.assert_close(pred.grad, like.grad.to(dtype))


def test_sums_beyond_half_precision():
    pred = torch.full((2000, 80), 10.0, dtype=torch.float16, requires_grad=True)
    loss = SlicedFocalLoss(reduction='sum', gamma=0.0)(pred, torch.full((2000,), 80))
    torch.testing.assert_close(loss, torch.tensor(0.75 * 10 * 2000 * 80), rtol=1e-4, atol=0)


# Memory


def peak(loss_module, pred, target, weight) -> int:
    pred.grad = None
    with StorageTracker() as tracker:
        loss_module(pred, target, weight, avg_factor=10.0).backward()
    return tracker.peak


# Shares of classes go through autograd, slice by slice, which keeps more.
@pytest.mark.parametrize('form, forward, both', [('labels', 4.1, 4.1), ('shares', 12, 16)])
def test_memory_is_the_gradient_and_a_few_slices(form, forward, both):
    rows, classes, slice_bytes = 4000, 80, 1 << 16
    pred, weight = logits(rows, classes, dtype=torch.float32), torch.rand(rows)
    nbytes = rows * classes * 4
    target = (
        torch.randint(0, classes + 1, (rows,)) if form == 'labels' else torch.rand(rows, classes)
    )
    sliced = SlicedFocalLoss(slice_bytes=slice_bytes)
    assert peak(sliced, pred, target, weight) <= nbytes + both * slice_bytes
    assert peak(FocalLoss(), pred, target, weight) > 8 * nbytes
    with StorageTracker() as tracker:
        loss = sliced(pred, target, weight, avg_factor=10.0)
        assert tracker.peak <= forward * slice_bytes
        assert tracker.current <= 64  # the loss alone
    assert loss.requires_grad


def test_slices_are_bounded_by_default():
    pred, target = logits(20000, 80, dtype=torch.float32), torch.full((20000,), 80)
    assert peak(SlicedFocalLoss(), pred, target, None) <= 20000 * 80 * 4 + 5 * 2**20


def test_a_row_larger_than_a_slice():
    pred, target = logits(), TARGETS['labels']()
    loss = SlicedFocalLoss(slice_bytes=1)(pred, target)
    torch.testing.assert_close(loss, FocalLoss()(pred, target))


# What a user gets wrong


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(use_sigmoid=False), 'use_sigmoid=False.*set use_sigmoid=True'),
        (dict(activated=True), "activated=True.*use type='mmdet.FocalLoss'"),
        (dict(gamma=-1), 'gamma=-1: give a finite number from 0'),
        (dict(slice_bytes=0), 'slice_bytes=0: give an integer from 1'),
        (dict(reduction='avg'), "reduction='avg' is none of none, mean, sum"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        MODELS.build(dict(type='SlicedFocalLoss', **settings))
    assert '\n' not in str(caught.value)


LABELS = torch.zeros(ROWS, dtype=torch.long)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(target=LABELS, avg_factor=2, reduction_override='sum'),
            "reduction='sum': leave it out",
        ),
        (dict(target=LABELS, reduction_override='avg'), "reduction='avg' is none of"),
        (
            dict(target=LABELS + CLASSES + 1),
            'class index 6, but there are 5 logits.*set num_classes',
        ),
        (dict(target=LABELS - 1), 'class index -1, but'),
        (dict(target=LABELS[1:]), r'targets \(22,\) for logits \(23, 5\): give class indices'),
        (dict(target=LABELS[:, None]), r'targets \(23, 1\) for logits'),
        (dict(target=LABELS.float()), 'as torch.float32: give class indices as integers'),
        (dict(target=LABELS.bool()), 'as torch.bool: give class indices as integers'),
        (dict(target=LABELS, weight=torch.rand(ROWS - 1)), r'weights \(22,\) for logits \(23, 5\)'),
        (dict(target=LABELS, weight=torch.rand(ROWS, 2)), r'weights \(23, 2\) for'),
        (dict(target=LABELS, weight=torch.rand(CLASSES, ROWS).T[:, :4]), r'weights \(23, 4\) for'),
        (dict(target=LABELS, weight=torch.tensor(1.0)), r'weights \(\) for'),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        SlicedFocalLoss()(logits(), **arguments)
    assert '\n' not in str(caught.value)


def test_a_number_is_no_weight_of_one_row():
    with pytest.raises(LocalLearningError, match=r'weights \(\) for logits \(1, 5\)'):
        SlicedFocalLoss()(logits(rows=1), LABELS[:1], torch.tensor(1.0))
