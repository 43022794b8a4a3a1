"""What the tools print: MMEngine's log and their own lines, nothing of other packages'."""

import os
import re
import subprocess
import sys

import pytest

from .in_process import ROOT

# The beginning of an entry of MMEngine's log, whose file has the year, too.
ENTRY = r'\d\d/\d\d \d\d:\d\d:\d\d - mmengine - (INFO|WARNING|ERROR) - '
# Of COCO's evaluation, which MMDetection's users know.
COCO = (
    'loading annotations into memory|creating index|index created|Loading and preparing results|'
    'Evaluate annotation type|Running per image evaluation|Accumulating evaluation results|'
    r'Done \(t=|DONE \(t='
)


def run(*command, **environment):
    """Start a command in a fresh process; what it prints, both streams together."""
    variables = {k: v for k, v in os.environ.items() if k != 'NO_ALBUMENTATIONS_UPDATE'}
    variables.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **environment)
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_importing_prints_nothing():
    code = """
from importlib.util import find_spec
import fba_mm
for name in ('mmdet.apis', 'mmpretrain.datasets', 'mmseg.datasets', 'mmagic.models'):
    if find_spec(name.partition('.')[0]):
        __import__(name)
"""
    # albumentations asks the network for newer versions unless told otherwise; the tools tell it.
    assert run('-c', code, NO_ALBUMENTATIONS_UPDATE='1') == ''


@pytest.mark.slow
def test_training_prints_its_log(config, tmp_path):
    work_dir = tmp_path / 'work'
    out = run(ROOT / 'tools/train.py', config(epochs=1), '--work-dir', work_dir)
    (log,) = work_dir.glob('*/*.log')
    logged = log.read_text()
    assert 'local_1.loss' in logged and 'Epoch(val) [1]' in logged
    assert 'FileClient' not in logged and 'HardDiskBackend' not in logged
    lines = {'', *logged.splitlines()}
    others = [line for line in out.splitlines() if line not in lines]
    assert [line for line in others if not re.match(f'{ENTRY}|{COCO}', line)] == []
