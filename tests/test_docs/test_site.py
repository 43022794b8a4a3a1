"""What would end `make docs` with a warning, found without Sphinx."""

import os
import re

from ..test_tools.in_process import ROOT
from .pages import PAGES

DOCS = ROOT / 'docs'


def listed(page) -> set:
    """The pages that a page's tables of contents name."""
    found = set()
    for text in re.findall(r'```\{toctree\}\n(.*?)```', page.read_text(), re.S):
        for line in text.splitlines():
            entry = re.sub(r'.*<(.*)>', r'\1', line.strip())
            if entry and not entry.startswith(':'):
                found.add(os.path.normpath(page.parent / entry))
    return found


def test_each_page_is_in_the_table_of_contents():
    named = set().union(*(listed(path) for path in DOCS.rglob('*.md')))
    pages = {str(path.with_suffix('')) for path in DOCS.rglob('*.md')}
    pages |= {str(path.with_suffix('')) for path in DOCS.glob('*.ipynb')}
    pages |= {str(path.with_suffix('')) for path in (ROOT / 'benchmarks').rglob('*.md')}
    pages |= {str((ROOT / page).with_suffix('')) for page in PAGES if '/' not in page}
    missing = pages - named - {str(DOCS / 'index')}
    assert not missing, 'name them in docs/index.md or docs/results.md'
    for page in named:
        assert any(os.path.exists(page + suffix) for suffix in ('.md', '.ipynb')), page


def test_the_site_is_built_by_a_job_of_its_own_with_pinned_tools():
    assert 'run: make docs' in (ROOT / '.github/workflows/ci.yml').read_text()
    assert 'docs' not in (ROOT / '.ci/run').read_text()
    for line in (DOCS / 'requirements.txt').read_text().splitlines():
        assert line.startswith('#') or re.fullmatch(r'[\w-]+==[\w.]+', line), line
