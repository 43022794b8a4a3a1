"""What several files of the repository state is the same in all of them."""

import re

import fba_mm

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
