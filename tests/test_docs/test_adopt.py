"""docs/adopt.md, from the first line of a data set to the exported model, as it stands there."""

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from fba_mm.__main__ import COMMANDS
from fba_mm.config import load_config
from fba_mm.preflight.building import build_model

from ..test_tools.in_process import run_tool
from .pages import blocks

PAGE = 'docs/adopt.md'


@pytest.mark.slow
def test_a_data_set_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE, 'python'):
        if block.file in ('make_shapes.py', 'my_shapes.py'):
            (tmp_path / block.file).write_text(block.text)
    (text,) = (block.text for block in blocks(PAGE, 'bash') if 'make_shapes.py' in block.text)
    for line in text.splitlines():
        program, command, *words = shlex.split(line)
        if program == 'python':
            monkeypatch.setattr(sys, 'argv', [command, *words])
            runpy.run_path(command)
            continue
        assert program == 'fba-mm'
        if command == 'train':
            # One epoch instead of twelve.
            words += ['--cfg-options', 'train_cfg.max_epochs=1']
        words = [word.replace('epoch_12', 'epoch_1') for word in words]
        assert run_tool(Path(COMMANDS[command][0]).stem, *words).status == 0, line
    assert len(json.loads((tmp_path / 'data/shapes/train.json').read_text())['images']) == 24
    stock = build_model(load_config('my_shapes.py'))
    weights = torch.load('shapes.pth', weights_only=True)['state_dict']
    stock.load_state_dict(weights, strict=True)
