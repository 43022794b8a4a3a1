"""The command ``fba-mm``."""

import argparse
import sys

import pytest

import fba_mm
from fba_mm import __main__ as command
from fba_mm import command_line

from .test_tools.in_process import ROOT, untouched_process


def _run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/fba-mm', *args])
    with untouched_process(), pytest.raises(SystemExit) as info:
        command.main()
    return info.value.code


@pytest.mark.parametrize('name', command.COMMANDS)
def test_each_command_is_a_tool(name, monkeypatch, capsys):
    assert _run(monkeypatch, name, '--help') == 0
    out = capsys.readouterr().out
    assert out.startswith(f'usage: fba-mm {name} [-h]')
    assert (ROOT / 'tools' / command.COMMANDS[name][0]).samefile(
        command._TOOLS / command.COMMANDS[name][0]
    )


def test_a_fault_is_one_line(monkeypatch, capsys):
    assert _run(monkeypatch, 'train', 'fba_mm::nothing.py') == 1
    out, err = capsys.readouterr()
    assert err.startswith('error: config fba_mm::nothing.py not found') and err.count('\n') == 1


def test_the_help_tells_of_all(monkeypatch, capsys):
    assert _run(monkeypatch, '--help') == 0
    out = capsys.readouterr().out
    assert all(f'  {name} ' in out for name in command.COMMANDS)
    assert _run(monkeypatch, 'fly') == 2
    assert 'fly' in capsys.readouterr().err
    assert _run(monkeypatch, '--version') == 0
    assert capsys.readouterr().out == f'{fba_mm.__version__}\n'


def test_trainings_by_name_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    command_line.add_common_arguments(parser)
    name = 'fba_mm::classification/svhn/resnet32_fba.py'
    cfg = command_line.config_from(parser.parse_args([name]))
    assert cfg.work_dir == './work_dirs/classification/svhn/resnet32_fba'
