"""Every piece of Python on the pages runs, and every config among them is built.

On a page, pieces run one after the other, in a folder of their own:

- what begins with ``# some_name.py`` is written there under that name; a config is built, too;
- a config, known by its ``_base_``, is loaded and its model built;
- a part of a config says in a comment before it what it is laid on: ``<!-- on: configs/x.py -->``;
- everything else is executed, in the names of its page.
"""

import ast
import re
from unittest import mock

import pytest
import torch

from fba_mm.config import load_config
from fba_mm.preflight.building import build_model

from ..test_tools.in_process import ROOT, untouched_process
from .pages import PAGES, Block, blocks

pytestmark = pytest.mark.slow

# Whose pieces are tried together with what they describe.
ELSEWHERE = {
    'docs/methods.md': 'tests/test_local/test_auxiliary/test_all_methods.py',
    'docs/backbones.md': 'tests/test_local/test_partition/test_family.py',
    'docs/plain_pytorch.md': 'tests/test_plain_pytorch.py',
}
DRAWN = ('kaiming_uniform_', 'kaiming_normal_', 'uniform_', 'normal_', 'xavier_uniform_')
# What a page takes for granted that readers have.
GIVEN = {
    'my_detector.py': "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n",
    'my_project.py': '',
}


def names_of(text: str) -> set:
    """What a piece assigns at its top."""
    return {
        target.id
        for line in ast.parse(text).body
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    }


def build(path) -> None:
    """Load a config and build its model, with weights as they come: drawing them takes longest."""
    cfg = load_config(str(path))
    if 'auxiliary' in cfg:
        cfg.model.backbone.auxiliary = cfg.auxiliary
    with mock.patch.multiple(torch.nn.init, **dict.fromkeys(DRAWN, lambda x, *_, **__: x)):
        build_model(cfg)


def lay_on(block: Block, folder):
    """A config of the part of a config that a page shows."""
    base = re.fullmatch(r'on: (\S+)', block.note)[1]
    base = base if '::' in base else str(ROOT / base)
    path = folder / 'laid_on.py'
    path.write_text(f'_base_ = {base!r}\n{block.text}')
    return path


def in_the_repository(text: str) -> str:
    """A config as it would be in the folder that its page has in mind."""
    text = re.sub(r"'\./_base_/", f"'{ROOT}/configs/_base_/", text)
    return re.sub(r"'configs/", f"'{ROOT}/configs/", text)


def run(block: Block, folder, names: dict) -> None:
    if block.note is not None and block.note.startswith('on: '):
        build(lay_on(block, folder))
    elif '_base_' in names_of(block.text):
        path = folder / (block.file or 'config.py')
        path.write_text(in_the_repository(block.text))
        build(path)
    elif block.file is not None:
        (folder / block.file).write_text(block.text)
    else:
        assert 'import' in block.text or names, f'{block.where}: say what it is laid on'
        exec(compile(block.text, block.where, 'exec'), names)


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page not in ELSEWHERE and any(blocks(page, 'python'))]
)
def test_pieces_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in GIVEN.items():
        (tmp_path / name).write_text(text)
    names: dict = {}
    with untouched_process():
        for block in blocks(page, 'python'):
            try:
                run(block, tmp_path, names)
            except Exception as error:
                raise AssertionError(f'{block.where}: {type(error).__name__}: {error}') from error


def test_the_other_pages_are_tried_where_it_says():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text()


@pytest.mark.parametrize(
    'text, note',
    [
        ('import fba_mm\nfba_mm.localise', None),
        ("_base_ = './my_detector.py'\nmodel = dict(backbone=dict(deptth=18))", None),
        ("auxiliary = dict(type='SLN')", 'on: configs/demo/retinanet_r34_fba_digits.py'),
        ("model = dict(type='RetinaNet')", None),
    ],
)
def test_a_wrong_piece_is_found(text, note, tmp_path):
    (tmp_path / 'my_detector.py').write_text(GIVEN['my_detector.py'])
    with pytest.raises(Exception, match=r'localise|deptth|SLN|say what'):
        run(Block('page', 1, 'python', text, note), tmp_path, {})
