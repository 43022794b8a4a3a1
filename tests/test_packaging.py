"""What several files of the repository state is the same in all of them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import fba_mm
from fba_mm.__main__ import COMMANDS

from .test_tools.in_process import ROOT

PAGES = ('docs', 'benchmarks', 'projects')


def _found(pattern: str, name: str) -> list:
    return re.findall(pattern, (ROOT / name).read_text())


def test_the_version():
    assert _found(r'(?m)^version: (\S+)', 'CITATION.cff') == [fba_mm.__version__]
    assert fba_mm.__version__ in _found(r'(?m)^## (.*)', 'CHANGELOG.md')[0]


def test_supported_pythons_are_those_that_are_tested():
    tested = {int(minor) for minor in _found(r"(?m)^        '3\.(\d+)',", 'noxfile.py')}
    tested |= {int(minor) for minor in _found(r"\('3\.(\d+)', '", 'noxfile.py')}
    assert _found(r"python_requires='>=3\.(\d+)'", 'setup.py') == [str(min(tested))]
    (listed,) = _found(r'for minor in \(([\d, ]+)\)', 'setup.py')
    assert {int(minor) for minor in listed.split(',')} == tested
    assert _found(r'target-version = "py3(\d+)"', 'pyproject.toml') == [str(min(tested))]


def test_one_ruff():
    (pinned,) = _found(r'(?m)^ruff==(\S+)', 'requirements.txt')
    assert _found(r'ruff-pre-commit\n\s+rev: v(\S+)', '.pre-commit-config.yaml') == [pinned]


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob('*.md'), *(p for d in PAGES for p in (ROOT / d).rglob('*.md'))]
    for page in pages:
        for link in re.findall(r'\]\((?!https?:)([^)\s]+)\)', page.read_text()):
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            assert target.exists(), (page.name, link)
            headings = re.findall(r'(?m)^#+ (.*)$', target.read_text()) if anchor else []
            anchors = [
                re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in headings
            ]
            assert not anchor or anchor in anchors, (page.name, link)


# What setup.py needs of a checkout.
_PACKAGE = ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'fba_mm', 'configs', 'tools')


def _python(code, folder, **environment):
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1', **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_sdist_and_wheel_have_configs_and_tools(tmp_path):
    """Built as pip does, one of the other, and used where nothing else is."""
    pytest.importorskip('setuptools')
    tree, out, installed = (tmp_path / name for name in ('tree', 'out', 'installed'))
    tree.mkdir()
    skipped = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in _PACKAGE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=skipped)
        else:
            shutil.copy(source, tree / name)
    for link in (ROOT / 'fba_mm/.mim').iterdir():
        if link.is_file():
            shutil.copy(link, tree / link.name)
    build = 'from setuptools import build_meta; build_meta.build_{}({!r})'
    _python(build.format('sdist', str(out)), tree)
    (sdist,) = out.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    _python(build.format('wheel', str(out)), tmp_path / sdist.name[: -len('.tar.gz')])
    (wheel,) = out.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(installed)
    for folder in ('configs', 'tools'):
        expected = {
            f'fba_mm/.mim/{path.relative_to(ROOT).as_posix()}'
            for path in (ROOT / folder).rglob('*')
            if path.suffix in ('.py', '.sh', '.yml', '.md')
        }
        assert len(expected) > 10 and expected <= names
    assert (ROOT / 'model-index.yml').exists() == ('fba_mm/.mim/model-index.yml' in names)
    assert all(f'fba_mm/.mim/tools/{script}' in names for script, _ in COMMANDS.values())
    assert not any(name.endswith('.pyc') for name in names)

    (metadata,) = installed.glob('*.dist-info/METADATA')
    extras = set(re.findall(r'(?m)^Provides-Extra: (.*)$', metadata.read_text()))
    assert extras >= {'detection', 'classification', 'segmentation', 'super-resolution'}
    assert f'\nVersion: {fba_mm.__version__}\n' in metadata.read_text()
    assert 'fba-mm = fba_mm.__main__:main' in (metadata.parent / 'entry_points.txt').read_text()

    (tmp_path / 'mine.py').write_text("_base_ = 'fba_mm::retinanet_r50_fba.py'\n")
    code = (
        'import fba_mm; from mmengine.config import Config; print(fba_mm.__file__); '
        "print(Config.fromfile('mine.py').model.backbone.type)"
    )
    where, kind = _python(code, tmp_path, PYTHONPATH=str(installed)).splitlines()[-2:]
    assert where == str(installed / 'fba_mm/__init__.py') and kind == 'LocalBackbone'
