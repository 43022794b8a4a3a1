"""mmagic's EDSRNet in segments: a long skip that crosses them, an image at the end."""

import copy

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.local.partition import cut, cut_points, trace_footprints, unroll

from ...super_resolution import edsr
from . import family_checks


def advanced(backbone, x):
    kept = {}
    for segment in unroll(backbone).segments:
        x = segment.advance(backbone, x, kept)
    return x


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'cfg',
    [
        edsr(2),
        edsr(3),
        edsr(4),
        edsr(8, num_blocks=1),
        edsr(2, res_scale=0.1),
        edsr(2, rgb_mean=[0.1, 0.2, 0.3], rgb_std=[0.5, 0.6, 0.7]),
    ],
)
def test_segments_are_the_network(cfg, training):
    backbone = family_checks.built(cfg).train(training)
    x = torch.rand(2, 3, 9, 11)
    expected = copy.deepcopy(backbone)(x)
    found = advanced(backbone, x)
    assert found.shape[-2:] == tuple(cfg['upscale_factor'] * side for side in x.shape[-2:])
    assert torch.equal(found, expected)


def test_segments_are_the_network_in_double_precision_and_under_autocast():
    backbone = family_checks.built(edsr())
    x = torch.rand(2, 3, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        expected, found = copy.deepcopy(backbone)(x), advanced(backbone, x)
    assert expected.dtype == found.dtype and torch.equal(expected, found)
    backbone, x = backbone.double(), x.double()
    expected, found = copy.deepcopy(backbone)(x), advanced(backbone, x)
    assert found.dtype == torch.double and torch.equal(expected, found)


def test_every_parameter_belongs_to_one_segment():
    family_checks.check_parameters(edsr())


def test_tracing_leaves_mean_and_deviation_where_they_are():
    backbone = family_checks.built(edsr())
    unrolled = unroll(backbone)
    trace_footprints(backbone, unrolled.segments, unrolled.input_shape)
    assert backbone.mean.device.type == backbone.std.device.type == 'cpu'


@pytest.mark.parametrize('scale, stride', [(2, 0.5), (3, 1 / 3), (4, 0.25)])
def test_stages_channels_and_strides(scale, stride):
    found = family_checks.stages_of(edsr(scale, num_blocks=2))
    assert [s[:2] for s in found] == [(-1, 8), (0, 8), (0, 8), (1, 3)]
    assert [s[2] for s in found] == pytest.approx([1, 1, 1, stride], rel=0.05)


def test_finest_cut_is_stem_blocks_and_tail():
    backbone = family_checks.built(edsr(num_blocks=3))
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments, unrolled.input_shape)
    assert [len(m) for m in cut(footprints, unrolled.segments, 'blocks')] == [1] * 5
    assert cut(footprints, unrolled.segments, 'stages') == [range(4), range(4, 5)]


@pytest.mark.parametrize('residual', ['network', 'bicubic', 'bilinear'])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_reduced_parts(scale, residual):
    backbone = family_checks.built(edsr(scale))
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments, unrolled.input_shape)
    point = cut_points(backbone, unrolled, footprints, cut(footprints, unrolled.segments, 2))[0]
    block = point.reduced_block(8, 8, 1)
    assert type(block) is type(backbone.body[0])
    head = point.reduced_head(4, residual)
    images, x = torch.rand(2, 3, 6, 7), torch.rand(2, 8, 6, 7)
    out = head(block(x), x, images)
    assert out.shape == (2, 3, 6 * scale, 7 * scale)
    # Without details, the image is the mean colour or the enlarged one.
    for parameter in head.conv_last.parameters():
        torch.nn.init.zeros_(parameter)
    plain = head(x, None, images)
    expected = (
        backbone.mean.expand_as(plain)
        if residual == 'network'
        else (
            torch.nn.functional.interpolate(
                images, scale_factor=scale, mode=residual, align_corners=False
            )
        )
    )
    assert torch.allclose(plain, expected)


def test_a_block_changes_channels_but_not_the_resolution():
    reduced_block = unroll(family_checks.built(edsr())).reduced_block
    assert reduced_block(8, 3, 1)(torch.rand(1, 8, 5, 5)).shape == (1, 3, 5, 5)
    with pytest.raises(LocalLearningError, match='stride=2 does not fit'):
        reduced_block(8, 8, 2)
