"""The pictures of docs/concepts.md show what the networks do."""

import pytest
from matplotlib.image import imread

from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.localize import localize

from ..test_analysis.small_configs import detector
from .in_process import load_tool

tool = load_tool('analysis_tools/draw_concepts')
SHAPE = (2, 3, 64, 64)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return tool.draw(detector(), 4, SHAPE, tmp_path_factory.mktemp('concepts'))


def test_three_pictures(drawn):
    assert [path.name for path in drawn] == ['partition.png', 'step.png', 'bank.png']
    for path in drawn:
        assert imread(path).std() > 0.05


def test_each_block_is_drawn_in_its_module(tmp_path):
    backbone = TrainingStep(localize(detector(), 4)).model.backbone
    figure = tool.draw_partition(backbone, tmp_path / 'partition.png')
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [
        pytest.approx(one.saved_bytes / 2**20) for one in backbone.footprints
    ]
    colours = [bar.get_facecolor() for bar in bars]
    ends = [module.stop for module in backbone.module_segments]
    changes = [i for i in range(1, len(colours)) if colours[i] != colours[i - 1]]
    assert changes == ends[:-1]


@pytest.mark.parametrize(
    'scope, shallower, deeper',
    [('off', 'blank', 'made'), ('past', 'bank', 'made'), ('all', 'bank', 'both')],
)
def test_where_maps_come_from(scope, shallower, deeper):
    step = TrainingStep(localize(detector(), ['layer2.1', 'layer3.1'], scope=scope))
    found = tool.trace_bank(step, synthetic_batch(step.model, SHAPE))
    # The pyramid starts at stride 8: the finest level is not looked at.
    assert found == [
        {1: 'module', 2: deeper, 3: deeper},
        {1: shallower, 2: 'module', 3: deeper},
    ]
    # What was watched is as before.
    assert all('loss' not in vars(one) for one in step.model.backbone.auxiliary)
