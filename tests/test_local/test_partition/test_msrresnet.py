"""mmagic's MSRResNet in segments: the images themselves are read at the end."""

import pytest

from ...super_resolution import msrresnet
from . import family_checks


@pytest.mark.parametrize(
    'cfg', [msrresnet(2), msrresnet(3), msrresnet(4), msrresnet(2, num_blocks=1)]
)
def test_segments_are_the_network(cfg):
    family_checks.check_forward(cfg, (3, 9, 11))


@pytest.mark.parametrize('scale', [2, 4])
def test_every_parameter_belongs_to_one_segment(scale):
    family_checks.check_parameters(msrresnet(scale))


def test_stages_channels_and_strides():
    assert family_checks.stages_of(msrresnet(4, num_blocks=2)) == [
        (-1, 8, 1),
        (0, 8, 1),
        (0, 8, 1),
        (1, 3, 0.25),
    ]


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_reduced_parts(scale):
    family_checks.check_reduced_reconstruction(msrresnet(scale), (6, 7), adds_images=True)
