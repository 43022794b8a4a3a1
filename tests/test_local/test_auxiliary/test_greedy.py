"""Greedy against the same in plain operations."""

import torch

from fba_mm.local.auxiliary.greedy import Greedy

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


def test_parameters():
    assert [size_of(Greedy(place(i), 10)) for i in (0, 6, 11)] == [170, 330, 650]


def test_loss():
    auxiliary, x = Greedy(place(), NUM_CLASSES), map_at()
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    logits = torch.stack([(auxiliary.fc.weight * f).sum(1) + auxiliary.fc.bias for f in pooled])
    assert losses.keys() == {'loss_cls'}
    assert_equal_at(x, losses['loss_cls'], negative_log_share(logits, LABELS))
