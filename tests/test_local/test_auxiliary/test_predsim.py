"""PredSim against the same in plain operations."""

import math

import pytest
import torch
from torch.nn import functional as F

from fba_mm import LocalLearningError
from fba_mm.local.auxiliary.predsim import PredSim, pooled_size

from .places import (
    NUM_CLASSES,
    assert_equal_at,
    map_at,
    negative_log_share,
    place,
    size_of,
    step_with,
)

LABELS = [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize('index, size', [(0, (4, 8)), (6, (4, 4)), (11, (2, 4))])
def test_parameters(index, size):
    auxiliary, x = PredSim(place(index), 10), map_at(index, size=32)
    # Windows of 8×4, 4×4 and 4×2 positions.
    assert auxiliary.pool(x).shape[2:] == size
    assert size_of(auxiliary) == (512 + 1) * 10 + 9 * x.shape[1] ** 2


@pytest.mark.parametrize(
    'channels, size, values, expected',
    [
        (16, 96, 512, (3, 6)),  # STL-10
        (128, 32, 2048, (4, 4)),
        (128, 32, 4096, (4, 8)),
        (256, 16, 4096, (4, 4)),
        (16, 7, 512, (4, 7)),
        (16, 4, 512, (4, 4)),  # as it is
        (2048, 7, 512, (1, 1)),
    ],
)
def test_windows_are_doubled_by_turns(channels, size, values, expected):
    assert pooled_size(channels, size, values) == expected


def test_a_linear_layer_that_starts_at_zero():
    auxiliary, x = PredSim(place(), NUM_CLASSES, zero_init=True), map_at()
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    torch.testing.assert_close(losses['loss_cls'].item(), 0.01 * math.log(NUM_CLASSES))


def similarities(vectors):
    """Cosine of every two vectors, each less its own mean."""
    vectors = [v - v.mean() for v in vectors]
    return torch.stack(
        [
            torch.stack([(a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt() for b in vectors])
            for a in vectors
        ]
    )


def similarity_loss(features):
    targets = torch.zeros(len(LABELS), NUM_CLASSES)
    for i, label in enumerate(LABELS):
        targets[i, label] = 1
    return ((similarities(features) - similarities(targets)) ** 2).sum() / len(LABELS) ** 2


def test_loss():
    auxiliary, x = PredSim(place(), NUM_CLASSES), map_at()
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    # 16 × 16 positions to 4 × 8: the mean of each 4 × 2.
    pooled = x.reshape(6, 16, 4, 4, 8, 2).mean((3, 5))
    logits = pooled.flatten(1) @ auxiliary.fc.weight.T + auxiliary.fc.bias
    assert_equal_at(x, losses['loss_cls'], 0.01 * negative_log_share(logits, LABELS))
    features = F.conv2d(x, auxiliary.conv.weight, padding=1).flatten(2)
    mean = features.mean(2, keepdim=True)
    deviations = (((features - mean) ** 2).sum(2) / (features.shape[2] - 1)).sqrt()
    assert_equal_at(x, losses['loss_similarity'], 0.99 * similarity_loss(deviations))
    assert losses['loss_similarity'] > 0.01


def test_a_map_of_one_position():
    auxiliary, x = PredSim(place(), NUM_CLASSES), torch.randn(6, 16, 1, 1)
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    features = F.conv2d(x, auxiliary.conv.weight, padding=1).flatten(1)
    torch.testing.assert_close(losses['loss_similarity'], 0.99 * similarity_loss(features))


def test_constant_maps_have_finite_gradients():
    auxiliary = PredSim(place(), NUM_CLASSES)
    x = torch.zeros(6, 16, 4, 4, requires_grad=True)
    sum(auxiliary.loss(x, {}, step_with(LABELS)).values()).backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in auxiliary.parameters())


def test_mixed_labels():
    auxiliary, x = PredSim(place(), NUM_CLASSES), map_at()
    exact = torch.eye(NUM_CLASSES)[LABELS]
    plain = auxiliary.loss(x, {}, step_with(LABELS))
    scored = auxiliary.loss(x, {}, step_with(LABELS, exact))
    torch.testing.assert_close(scored, plain)
    mixed = auxiliary.loss(x, {}, step_with(LABELS, 0.7 * exact + 0.3 * exact.flip(0)))
    assert abs(mixed['loss_similarity'] - plain['loss_similarity']) > 0.01


def test_share_of_similarity():
    with pytest.raises(
        LocalLearningError, match='similarity_weight=1.5: give a finite number from 0 to 1'
    ):
        PredSim(place(), 10, similarity_weight=1.5)
    losses = PredSim(place(), NUM_CLASSES, similarity_weight=0.0).loss(
        map_at(), {}, step_with(LABELS)
    )
    assert losses['loss_similarity'] == 0 and losses['loss_cls'] > 0.5
