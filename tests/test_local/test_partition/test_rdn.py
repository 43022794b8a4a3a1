"""mmagic's RDNNet in segments: all blocks' outputs are kept for the global fusion."""

import pytest

from fba_mm.local.partition import unroll
from fba_mm.local.partition.reconstruction import FIRST_MAP

from ...super_resolution import rdn
from . import family_checks


@pytest.mark.parametrize('cfg', [rdn(2), rdn(3), rdn(4), rdn(2, num_blocks=1)])
def test_segments_are_the_network(cfg):
    family_checks.check_forward(cfg, (3, 9, 11))


def test_every_parameter_belongs_to_one_segment():
    family_checks.check_parameters(rdn())


def test_the_tail_reads_what_the_blocks_keep():
    segments = unroll(family_checks.built(rdn(num_blocks=3))).segments
    # The last block's output reaches the tail anyway.
    assert [s.keeps for s in segments] == [FIRST_MAP, None, 'rdbs.0', 'rdbs.1', None, None]
    assert segments[-1].reads == (FIRST_MAP, 'rdbs.0', 'rdbs.1')


def test_stages_channels_and_strides():
    assert family_checks.stages_of(rdn(4, num_blocks=2)) == [
        (-1, 8, 1),
        (-1, 8, 1),
        (0, 8, 1),
        (0, 8, 1),
        (1, 3, 0.25),
    ]


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_reduced_parts(scale):
    family_checks.check_reduced_reconstruction(rdn(scale), (6, 7))
