"""Every command on the pages is one that the tools take, with files and configs that are there."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import List, Tuple
from unittest import mock

import pytest

from fba_mm.__main__ import COMMANDS
from fba_mm.config import load_config

from ..test_tools.in_process import ROOT
from .pages import PAGES, Block, blocks

# Of the shell, or of programs that a reader may have.
ELSEWHERE = {'.', 'cd', 'export', 'git', 'mkdir', 'pre-commit', 'source'}
PACKAGES = ('nox', 'pre-commit')
parse_args = argparse.ArgumentParser.parse_args


class Parsed(BaseException):
    """Ends a tool once its arguments are known."""


def commands(block: Block) -> List[List[str]]:
    lines = block.text.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@lru_cache(maxsize=None)
def script(path: str):
    """The module of a script, which may import its neighbours."""
    if path.startswith('tests/'):
        return importlib.import_module(path[: -len('.py')].replace('/', '.'))
    spec = importlib.util.spec_from_file_location(f'script_{Path(path).stem}', ROOT / path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, 'path', [str(ROOT / path).rsplit('/', 1)[0], *sys.path]):
        spec.loader.exec_module(module)
    return module


def arguments(path: str, words: List[str]) -> argparse.Namespace:
    """What a script makes of its command line. It does nothing else."""

    def stop(parser, args=None, namespace=None):
        raise Parsed(parse_args(parser, args, namespace))

    def refuse(parser, message):
        raise AssertionError(f'{path} {" ".join(words)}: {message}')

    parser = argparse.ArgumentParser
    with mock.patch.object(parser, 'parse_args', stop), mock.patch.object(
        parser, 'error', refuse
    ), mock.patch.object(sys, 'argv', [path, *words]):
        try:
            script(path).main()
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f'{path} has parsed nothing')


def is_placeholder(word: str) -> bool:
    return re.fullmatch(r'[A-Z_]+', word) is not None


def is_of_the_readers_own(word: str) -> bool:
    return is_placeholder(word) or re.match(r'(work_dirs/|my_|data/)', word) is not None


def check_config(name: str) -> None:
    package, _, path = name.rpartition('::')
    if package:
        spec = importlib.util.find_spec(package)
        assert spec is None or (
            Path(spec.submodule_search_locations[0], '.mim/configs', path).exists()
            or (package == 'fba_mm' and (ROOT / 'configs' / path).exists())
        ), name
    elif not is_of_the_readers_own(name):
        assert (ROOT / name).exists(), name


def check_options(name: str, options: dict) -> None:
    """What ``--cfg-options`` sets stands in a part that the config has."""
    if not options or is_of_the_readers_own(name):
        return
    cfg = load_config(str(ROOT / name) if '::' not in name else name)
    for key in options:
        parent = cfg
        for part in key.split('.')[:-1]:
            parent = parent[int(part) if part.isdigit() else part]


def check_script(path: str, words: List[str], own: Tuple[str, ...] = ()) -> None:
    if path in own:
        return
    assert (ROOT / path).exists(), path
    args = arguments(path, words)
    configs = getattr(args, 'configs', None) or [getattr(args, 'config', None)]
    for name in map(str, filter(None, configs)):
        check_config(name)
        check_options(name, getattr(args, 'cfg_options', None))


def check_shell_script(path: str, words: List[str]) -> None:
    """The scripts around ``train.py`` and ``test.py`` take some words themselves."""
    assert (ROOT / path).exists(), path
    kind, tool = re.fullmatch(r'tools/(dist|slurm)_(train|test)\.sh', path).groups()
    files = 1 if tool == 'train' else 2
    if kind == 'dist':
        own, rest = words[:files], words[files + 1 :]
        assert words[files].isdigit(), words
    else:
        assert len(words) >= 3 + files - (tool == 'test'), words
        own, rest = words[2 : 2 + files], words[2 + files + (tool == 'train') :]
    check_script(f'tools/{tool}.py', [*own, '--launcher', 'pytorch', *rest])


def check_pip(words: List[str]) -> None:
    assert words[0] == 'install', words
    rest = iter(words[1:])
    for word in rest:
        if word == '-r':
            assert (ROOT / next(rest)).exists(), words
        elif not word.startswith('-'):
            name, _, extras = word.rstrip(']').partition('[')
            assert name in ('.', 'fba_mm', *PACKAGES) or '==' in name or '-' in name, word
            setup = (ROOT / 'setup.py').read_text()
            for extra in filter(None, extras.split(',')):
                assert re.search(rf"'{extra}': |{extra}=", setup), word


def check(words: List[str], own: Tuple[str, ...] = ()) -> None:
    """Look at one command; ``own`` are the files that its page has shown."""
    while re.match(r'\w+=', words[0]):
        words = words[1:]
    program, *words = words
    if program == 'torchrun':
        start = next(i for i, word in enumerate(words) if word.endswith('.py') or word == '-m')
        program, words = 'python', words[start:]
    if program in ('python', 'python3') and words[:2] == ['-m', 'fba_mm']:
        program, words = 'fba-mm', words[2:]
    if program.startswith('--'):
        # Goes with any training of its page.
        check_script('tools/train.py', ['CONFIG', program, *words])
    elif program == 'fba-mm':
        check_script(f'tools/{COMMANDS[words[0]][0]}', words[1:], own)
    elif program in ('python', 'python3') and words[0] == '-m' and words[1].startswith('tests.'):
        check_script(f'{words[1].replace(".", "/")}.py', words[2:])
    elif program in ('python', 'python3') and words[0] == '-m':
        assert words[1] in ('pytest', 'pip', 'venv'), words
        for word in words[2:] if words[1] == 'pytest' else ():
            assert word.startswith('-') or (ROOT / word.split('::')[0]).exists(), words
    elif program in ('python', 'python3') and words[0].startswith('$'):
        assert '.mim/tools' in words[0], words  # Of another package, found by its path.
    elif program in ('python', 'python3'):
        check_script(words[0], words[1:], own)
    elif program.endswith('.sh'):
        check_shell_script(program, words)
    elif program == 'pip':
        check_pip(words)
    elif program == 'make':
        (target,) = words
        assert re.search(rf'(?m)^{target}:', (ROOT / 'Makefile').read_text()), words
    elif program == 'nox':
        rows = re.findall(r"(?m)^    '([\w.-]+)': \(", (ROOT / 'noxfile.py').read_text())
        assert '-s' not in words or words[words.index('-s') + 1] in (*rows, 'NAME'), words
    else:
        assert program in ELSEWHERE, f'{program}: no tool of the repository, and no test knows it'


@pytest.mark.parametrize('page', [page for page in PAGES if any(blocks(page, 'bash'))])
def test_commands_of(page):
    own = tuple(name for block in blocks(page, 'python') if (name := block.file))
    for block in blocks(page, 'bash'):
        for words in commands(block):
            try:
                check(words, own)
            except Exception as error:
                raise AssertionError(f'{block.where}: {" ".join(words)}: {error}') from error


def test_each_block_says_what_it_is():
    """``bash`` and ``python`` are tried by the tests of this folder; nothing else is code."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ('bash', 'python', 'bibtex', 'text', ''), block.where


@pytest.mark.parametrize(
    'command, fault',
    [
        ('python tools/train.py configs/retinanet_r50_fba.py --locla 4', 'unrecognized'),
        ('python tools/train.py configs/no_such_config.py', 'no_such_config'),
        ('python tools/train.py mmdet::retinanet/no_such_config.py', 'no_such_config'),
        ('python tools/trian.py configs/retinanet_r50_fba.py', 'trian'),
        ('python -m tests.soak --iteration 3 --evry 2', 'unrecognized'),
        ('python tools/export.py configs/retinanet_r50_fba.py', 'required'),
        ('tools/dist_train.sh configs/retinanet_r50_fba.py 8 --locla 4', 'unrecognized'),
        ('fba-mm trian configs/retinanet_r50_fba.py', 'trian'),
        ('torchrun -m fba_mm train configs/retinanet_r50_fba.py --locla 4', 'unrecognized'),
        ('make tset', 'tset'),
        ('nox -s classic', 'classic'),
        ('pip install -e .[detektion]', 'detektion'),
        ('sudo rm', 'sudo'),
        (
            'python tools/train.py configs/retinanet_r50_fba.py --cfg-options model.nekc.a=1',
            'nekc',
        ),
    ],
)
def test_a_wrong_command_is_found(command, fault):
    with pytest.raises((AssertionError, KeyError, AttributeError), match=fault):
        check(shlex.split(command))
