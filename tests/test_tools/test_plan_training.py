"""Ways to train, through the tool."""

import pytest
from matplotlib.image import imread

from ..test_analysis.small_configs import classifier, detector
from .in_process import run_tool
from .test_bad_input import assert_refused

TOOL = 'analysis_tools/plan_training'


@pytest.mark.slow
def test_several_configs_in_one_table_and_picture(tmp_path, capsys):
    paths = [tmp_path / 'small_detector.py', tmp_path / 'small_classifier.py']
    for path, cfg in zip(paths, (detector(), classifier())):
        cfg.dump(path)
    out = tmp_path / 'plans'
    result = run_tool(
        TOOL, *paths, '--batch', 2, '--size', 64, '--memory-budget', '8GB', '--out', out,
        capsys=capsys,
    )  # fmt: skip
    assert result.status == 0, result.err
    _, _, together = result.out.partition('Ways to train of least memory')
    rows = [line.split() for line in together.splitlines() if line.strip().startswith('small_')]
    # Both fit as they are, so that nothing else is tried.
    assert [row[0] for row in rows] == ['small_detector', 'small_classifier']
    assert all(row[-3:] == ['1.00', '1.00', '–'] and row[1] == row[-4] for row in rows)
    for name in ('small_detector', 'small_classifier', 'frontier'):
        assert imread(out / f'{name}.png').ndim == 3


def test_two_of_one_name(tmp_path, capsys):
    detector().dump(tmp_path / 'small.py')
    result = run_tool(TOOL, tmp_path / 'small.py', tmp_path / 'small.py', capsys=capsys)
    assert_refused(result, 'two configs have the same name')
