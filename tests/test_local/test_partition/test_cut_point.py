"""What an auxiliary network is told of its place."""
import pytest
from mmengine.registry import MODELS

from fba_mm.local.partition import StageMap, cut, cut_points, trace_footprints, unroll

from ...conftest import retinanet


def points(num_modules, **settings):
    backbone = MODELS.build(retinanet(num_modules=None, **settings)['backbone'])
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments)
    return cut_points(unrolled, footprints, cut(footprints, unrolled.segments, num_modules))


def test_places_in_a_resnet():
    found = points('blocks')
    assert [p.module for p in found] == list(range(9)) and found[0].num_modules == 9
    assert [p.stage for p in found] == [-1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert [p.channels for p in found] == [8, 8, 8, 16, 16, 32, 32, 64, 64]
    assert [p.stride for p in found] == [4, 4, 4, 8, 8, 16, 16, 32, 32]


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (2, )])
def test_maps_of_all_stages(out_indices):
    for point in points(2, out_indices=out_indices):
        levels = {stage: level for level, stage in enumerate(out_indices)}
        assert point.stages == tuple(
            StageMap(stage, 8 * 2**stage, 4 * 2**stage, levels.get(stage)) for stage in range(4))
        assert [s.stage for s in point.levels] == list(out_indices)


def test_strides_count_dilation():
    found = points('stages', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    assert [p.stride for p in found] == [4, 8, 16, 16]


def test_blocks_are_those_of_the_backbone():
    block = points(2)[0].reduced_block(8, 16, 2)
    assert [p.shape[:2] for p in block.parameters() if p.dim() == 4][0] == (16, 8)
