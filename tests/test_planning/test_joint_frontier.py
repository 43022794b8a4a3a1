"""Several configs in one table and picture."""

import math

import pytest
from matplotlib.image import imread
from rich.console import Console

from fba_mm.errors import LocalLearningError
from fba_mm.planning.frontier_plot import Point
from fba_mm.planning.joint_frontier import draw_joint_frontier, joint_table

MIB = 2**20
CONFIGS = {
    'retinanet_r50': [
        Point('as shipped', True, 2.0, 400 * MIB),
        Point('with_cp', True, 2.6, 200 * MIB),
        Point('slow', True, 9.0, 190 * MIB),
        Point('K = 4', False, 2.2, 100 * MIB),
    ],
    'resnet50': [
        Point('as shipped', True, 1.0, 1000 * MIB),
        Point('with_cp', True, 1.3, 900 * MIB),
    ],
}


def printed(table):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_row_for_each_config():
    lines = printed(joint_table(CONFIGS, 'Ways', 'as shipped'))
    (first,) = (line.split() for line in lines if 'retinanet_r50' in line)
    assert first == [
        'retinanet_r50',
        '400',
        'slow',
        '190',
        '0.47',
        '4.50',
        'K',
        '=',
        '4',
        '100',
        '0.25',
        '1.10',
    ]
    (second,) = (line.split() for line in lines if ' resnet50' in line)
    assert second == ['resnet50', '1,000', 'with_cp', '900', '0.90', '1.30', '–']


def test_time_that_was_not_measured_is_left_out():
    (line,) = (
        line
        for line in printed(joint_table({'a': [Point('BP', True, math.nan, MIB)]}, 'Ways', 'BP'))
        if line.strip().startswith('a ')
    )
    assert line.split() == ['a', '1', 'BP', '1', '1.00', '–']


def test_the_picture_is_relative(tmp_path):
    figure = draw_joint_frontier(CONFIGS, tmp_path / 'new/joint.png', 'Ways')
    assert imread(tmp_path / 'new/joint.png').ndim == 3
    (axes,) = figure.axes
    lines = [
        [*zip(line.get_xdata(), line.get_ydata())]
        for line in axes.lines
        if line.get_linestyle() in ('-', '--') and len(line.get_xdata()) and line.get_marker() != ''
    ]
    assert [(1.0, 1.0), (1.3, 0.5), (4.5, 0.475)] in lines
    assert [(1.1, 0.25)] in lines
    legend = [text.get_text() for text in axes.get_legend().texts]
    assert legend == ['retinanet_r50', 'resnet50', 'exact', 'local learning']


def test_refused(tmp_path):
    with pytest.raises(LocalLearningError, match='at least one config'):
        draw_joint_frontier({}, tmp_path / 'x.png', 'Ways')
