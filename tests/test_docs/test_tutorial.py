"""The tutorial runs, and shows what its own code has made."""

import json

import matplotlib
import pytest

from ..test_tools.in_process import ROOT, untouched_process

NOTEBOOK = json.loads((ROOT / 'docs/tutorial.ipynb').read_text())


def run_tutorial():
    import importlib.util

    spec = importlib.util.spec_from_file_location('run_tutorial', ROOT / 'docs/run_tutorial.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_cells_run(monkeypatch, tmp_path, capsys):
    """In the test's own process, where imports are paid for; one epoch on a few small images."""
    monkeypatch.setenv('FBA_MM_TUTORIAL_EPOCHS', '1')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.chdir(ROOT / 'docs')
    matplotlib.use('Agg')
    names: dict = {}
    with untouched_process():
        for number, code in enumerate(run_tutorial().code_of(NOTEBOOK), 1):
            exec(compile(code, f'code cell {number}', 'exec'), names)
    assert 'the same' in capsys.readouterr().out
    assert {'BP', 'FBA'} == set(names['memory']) == set(names['runners'])


def test_its_outputs_are_those_of_its_code():
    assert NOTEBOOK['metadata']['outputs_of'] == run_tutorial().digest(NOTEBOOK), (
        'docs/tutorial.ipynb has changed since it was run: make tutorial'
    )
    outputs = [
        output
        for cell in NOTEBOOK['cells']
        if cell['cell_type'] == 'code'
        for output in cell['outputs']
    ]
    assert all(output['output_type'] != 'error' for output in outputs)
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4
