"""AugLocal: how deep it is, which blocks it picks, and its loss in plain operations."""

import pytest

from fba_mm import LocalLearningError
from fba_mm.local.auxiliary.auglocal import AugLocal, depth_at, pick

from .places import (
    NUM_CLASSES,
    RESNET32,
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


def depths(d, num_modules, **settings):
    return [
        depth_at(place(i, num_modules=num_modules), d, 1, **dict(dict(pyramid=0.5), **settings))
        for i in range(num_modules - 1)
    ]


@pytest.mark.parametrize(
    'd, expected',
    [
        # round(d - i / 2 / (K - 2) · (d - 1)) with K = 16 - d.
        (1, [1] * 14),
        (2, [2] * 13),
        (3, [3] * 6 + [2] * 6),
        (5, [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]),
        (9, [9, 8, 7, 7, 6, 5]),
    ],
)
def test_depth_falls(d, expected):
    assert depths(d, 16 - d) == expected


@pytest.mark.parametrize(
    'settings, expected',
    [(dict(pyramid=1.0), [3] * 4 + [2] * 7 + [1] * 4), (dict(pyramid=0.0), [3] * 15)],
)
def test_pyramid(settings, expected):
    assert depths(3, 16, **settings) == expected


@pytest.mark.parametrize(
    'index, depth, expected',
    [
        (0, 1, [15]),
        (0, 3, [5, 10, 15]),
        (0, 2, [8, 15]),  # 7.5 to the even 8
        (1, 4, [4, 8, 12, 15]),  # 4.5 to 4, 11.5 to 12
        (3, 4, [6, 9, 12, 15]),
        (3, 5, [5, 8, 10, 13, 15]),
        (10, 2, [12, 15]),  # 12.5 to 12: the absolute index is rounded
        (12, 3, [13, 14, 15]),
        (14, 1, [15]),
        (13, 5, [14, 15]),
    ],
)
def test_picks_at_equal_distances_up_to_the_last(index, depth, expected):
    picked = pick(place(index), depth)
    assert [int(block.name[len('block') :]) for block in picked] == expected


@pytest.mark.parametrize(
    'index, strides, channels',
    [
        (0, [1, 2, 2], [16, 32, 64]),
        (6, [1, 2, 1], [32, 64, 64]),
        (13, [1, 1], [64, 64]),
        # From the first stage to the third in one pick: the next one makes up for it.
        (5, [2, 2, 1], [32, 64, 64]),
    ],
)
def test_blocks_have_the_picks_shapes(index, strides, channels):
    built = []

    def reduced_block(in_channels, out_channels, stride):
        built.append((in_channels, out_channels, stride))
        return place().reduced_block(in_channels, out_channels, stride)

    AugLocal(place(index, reduced_block=reduced_block), 10, max_depth=3, pyramid=0.0)
    inputs = [RESNET32[index][1]] + channels[:-1]
    assert built == list(zip(inputs, channels, strides))


def residual_block_size(c_in, c, shortcut):
    return 9 * c_in * c + 9 * c * c + 4 * c + (c_in * c + 2 * c if shortcut else 0)


def test_parameters():
    expected = (
        residual_block_size(16, 16, False)
        + residual_block_size(16, 32, True)
        + residual_block_size(32, 64, True)
        + 64 * 10
        + 10
    )
    assert size_of(AugLocal(place(0), 10, max_depth=3)) == expected
    alone = AugLocal(place(14), 10, max_depth=1)
    assert size_of(alone) == residual_block_size(64, 64, False) + 2 * 64 + 64 * 10 + 10


@pytest.mark.parametrize('index', [12, 14])
def test_loss(index):
    depth = 15 - index
    auxiliary, x = AugLocal(place(index), NUM_CLASSES, depth, pyramid=0.0), map_at(index)
    unsettle(auxiliary)
    hidden = x
    for block in auxiliary.blocks:
        assert block.shortcut(x) is x
        first, last = block.residual
        residual = batch_norm(first.conv(hidden), first.norm).clamp(min=0)
        hidden = (hidden + batch_norm(last.conv(residual), last.norm)).clamp(min=0)
    pooled = hidden.mean((2, 3))
    if index == 14:  # One block: its features are normalized.
        pooled = batch_norm(pooled, auxiliary.norm)
    logits = pooled @ auxiliary.fc.weight.T + auxiliary.fc.bias
    losses = auxiliary.loss(x, {}, step_with(LABELS))
    assert len(auxiliary.blocks) == depth and losses.keys() == {'loss_cls'}
    assert_equal_at(x, losses['loss_cls'], negative_log_share(logits, LABELS))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(max_depth=0), 'max_depth=0: give a number of blocks from 1'),
        (dict(max_depth=2, min_depth=3), 'max_depth=2: give a number of blocks from 3'),
        (dict(min_depth=0), 'min_depth=0: give'),
        (dict(pyramid=1.5), 'pyramid=1.5: give a finite number from 0 to 1'),
    ],
)
def test_depths_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message):
        AugLocal(place(), 10, **settings)
