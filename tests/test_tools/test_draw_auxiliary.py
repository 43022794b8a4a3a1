"""Drawing auxiliary networks from the command line."""

from matplotlib.image import imread

from ..test_analysis.small_configs import detector
from .in_process import run_tool
from .test_bad_input import assert_refused

TOOL = 'analysis_tools/draw_auxiliary'


def test_a_stock_config_made_local(tmp_path, capsys):
    detector().dump(tmp_path / 'small.py')
    out = tmp_path / 'pictures/small.png'
    result = run_tool(TOOL, tmp_path / 'small.py', '--local', 3, '--out', out, capsys=capsys)
    assert result.status == 0, result.err
    assert str(out) in result.out
    assert imread(out).ndim == 3


def test_a_config_without_modules(tmp_path, capsys):
    detector().dump(tmp_path / 'small.py')
    result = run_tool(TOOL, tmp_path / 'small.py', '--out', tmp_path / 'x.png', capsys=capsys)
    assert_refused(result, 'no auxiliary networks')
