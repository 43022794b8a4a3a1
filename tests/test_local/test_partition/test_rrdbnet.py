"""mmagic's RRDBNet in segments: for small scales its maps are smaller than the images."""

import pytest

from ...super_resolution import rrdbnet
from . import family_checks


@pytest.mark.parametrize('cfg', [rrdbnet(1), rrdbnet(2), rrdbnet(4), rrdbnet(4, num_blocks=1)])
def test_segments_are_the_network(cfg):
    family_checks.check_forward(cfg, (3, 8, 12))


def test_every_parameter_belongs_to_one_segment():
    family_checks.check_parameters(rrdbnet())


@pytest.mark.parametrize('scale, strides', [(1, (4, 1)), (2, (2, 0.5)), (4, (1, 0.25))])
def test_stages_channels_and_strides(scale, strides):
    first, last = strides
    assert family_checks.stages_of(rrdbnet(scale, num_blocks=2)) == [
        (-1, 8, first),
        (0, 8, first),
        (0, 8, first),
        (1, 3, last),
    ]


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_reduced_parts(scale):
    family_checks.check_reduced_reconstruction(rrdbnet(scale), (8, 12))
