"""What an auxiliary network is told of its place."""

import pytest
from mmengine.registry import MODELS

from fba_mm.local.partition import StageMap, cut, cut_points, trace_footprints, unroll

from ...conftest import retinanet


def points(num_modules, backbone=None, **settings):
    backbone = backbone or MODELS.build(retinanet(num_modules=None, **settings)['backbone'])
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments)
    return cut_points(
        backbone, unrolled, footprints, cut(footprints, unrolled.segments, num_modules)
    )


def test_places_in_a_resnet():
    found = points('blocks')
    assert [p.module for p in found] == list(range(9)) and found[0].num_modules == 9
    assert [p.stage for p in found] == [-1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert [p.channels for p in found] == [8, 8, 8, 16, 16, 32, 32, 64, 64]
    assert [p.stride for p in found] == [4, 4, 4, 8, 8, 16, 16, 32, 32]


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (2,)])
def test_maps_of_all_stages(out_indices):
    for point in points(2, out_indices=out_indices):
        levels = {stage: level for level, stage in enumerate(out_indices)}
        assert point.stages == tuple(
            StageMap(stage, 8 * 2**stage, 4 * 2**stage, levels.get(stage)) for stage in range(4)
        )
        assert [s.stage for s in point.levels] == list(out_indices)


def test_strides_count_dilation():
    found = points('stages', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    assert [p.stride for p in found] == [4, 8, 16, 16]


def test_blocks_are_those_of_the_backbone():
    block = points(2)[0].reduced_block(8, 16, 2)
    assert [p.shape[:2] for p in block.parameters() if p.dim() == 4][0] == (16, 8)


def test_what_follows_a_module():
    backbone = MODELS.build(retinanet(num_modules=None)['backbone'])
    found = points('blocks', backbone)
    assert [len(p.later) for p in found] == list(range(8, -1, -1))
    following = found[2].later
    assert [b.name for b in following] == [f'layer{i}.{j}' for i in (2, 3, 4) for j in (0, 1)]
    assert [b.stage for b in following] == [1, 1, 2, 2, 3, 3]
    assert [b.channels for b in following] == [16, 16, 32, 32, 64, 64]
    assert [b.stride for b in following] == [8, 8, 16, 16, 32, 32]
    own = backbone.layer2[0]
    copied = found[2].copy_block(following[0].path)
    assert copied is not own and type(copied) is type(own)
    for a, b in zip(copied.parameters(), own.parameters()):
        assert a is not b and a.equal(b)
