"""DGL against the same in plain operations."""

import pytest
import torch

from fba_mm.local.auxiliary.dgl import DGL

from .places import (
    NUM_CLASSES,
    assert_equal_at,
    batch_norm,
    map_at,
    negative_log_share,
    place,
    size_of,
    step_with,
    unsettle,
)

LABELS = [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize('index, c', [(0, 16), (6, 32), (11, 64)])
def test_parameters(index, c):
    expected = 3 * (c * c + 2 * c) + 2 * (4 * c * 4 * c + 2 * 4 * c) + 4 * c * 10 + 10
    assert size_of(DGL(place(index), 10)) == expected


@pytest.mark.parametrize('index, expected', [(0, 14378), (6, 54858), (11, 214154)])
def test_parameters_of_the_authors_own(index, expected):
    assert size_of(DGL(place(index), 10, hidden_layers=3, hidden_bias=True)) == expected


def test_widths():
    auxiliary = DGL(place(), NUM_CLASSES, width=8, positions=1, hidden_layers=3, hidden_width=12)
    shapes = [tuple(p.shape) for p in auxiliary.parameters() if p.ndim > 1]
    assert shapes == [
        (8, 16, 1, 1),
        (8, 8, 1, 1),
        (8, 8, 1, 1),
        (12, 8),
        (12, 12),
        (12, 12),
        (NUM_CLASSES, 12),
    ]
    assert auxiliary.loss(map_at(), {}, step_with(LABELS))['loss_cls'].isfinite()


@pytest.mark.parametrize('settings', [dict(), dict(hidden_layers=3, hidden_bias=True)])
def test_loss(settings):
    auxiliary, x = DGL(place(), NUM_CLASSES, **settings), map_at()
    unsettle(auxiliary)
    # 16 × 16 to 4 × 4 positions, and these later to 2 × 2.
    hidden = x.view(6, 16, 4, 4, 4, 4).mean((3, 5))
    for conv, norm in [auxiliary.convs[i : i + 2] for i in (0, 3, 6)]:
        hidden = torch.einsum('oi,nihw->nohw', conv.weight[..., 0, 0], hidden)
        hidden = batch_norm(hidden, norm).clamp(min=0)
    hidden = hidden.view(6, 16, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    *hidden_layers, last = auxiliary.mlp
    for linear, norm in zip(hidden_layers[::3], hidden_layers[1::3]):
        # A bias would have no effect before the norm.
        hidden = batch_norm(hidden @ linear.weight.T, norm).clamp(min=0)
    logits = hidden @ last.weight.T + last.bias
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    assert losses.keys() == {'loss_cls'} and len(auxiliary.convs) == 9
    assert len(auxiliary.mlp) == 3 * settings.get('hidden_layers', 2) + 1
    assert_equal_at(x, losses['loss_cls'], negative_log_share(logits, LABELS))


@pytest.mark.parametrize('size, quarter', [((32, 32), (8, 8)), ((7, 9), (2, 3)), ((3, 3), (1, 1))])
def test_a_quarter_of_the_map_rounded_up(size, quarter):
    auxiliary, seen = DGL(place(), NUM_CLASSES), []
    auxiliary.convs.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    loss = auxiliary.loss(torch.rand(6, 16, *size), {}, step_with(LABELS))['loss_cls']
    assert seen == [quarter] and loss.isfinite()
