"""The documentation site: ``make docs``.

The repository's root is the source, so that links between pages, the README and results hold in the
repository as they do on the site. Pages stand in ``docs/index.md``.
"""

import sys
from pathlib import Path

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fba_mm  # noqa: E402

project = 'fba_mm'
author = 'The fba_mm authors'
copyright = author
version = release = fba_mm.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
root_doc = 'docs/index'
# So that build/docs/index.html is there.
html_additional_pages = {'index': 'redirect.html'}
include_patterns = [
    'README.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'docs/**.md',
    'docs/**.ipynb',
    'benchmarks/**.md',
    'projects/**.md',
]
# Not looked into: they are large.
exclude_patterns = ['.*', 'build', 'data', 'fba_mm', 'tests', 'work_dirs']

myst_enable_extensions = ['colon_fence']
# As on the pages of a repository: [what it costs](memory.md#what-it-costs).
myst_heading_anchors = 4
# The notebook lies here with its outputs; `python docs/run_tutorial.py` makes them anew.
nb_execution_mode = 'off'

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
# `**kwargs` of parent classes stand there.
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'fba_mm {release}'
html_static_path = ['static']
html_css_files = ['wrap.css']
html_show_sourcelink = False
templates_path = ['templates']


def link_folders(app: Sphinx, doctree) -> None:
    """A link to a folder of configs leads to the model zoo, which lists them."""
    page = (ROOT / app.env.docname).parent
    for link in doctree.findall(pending_xref):
        if link['reftype'] == 'myst' and (page / link['reftarget']).is_dir():
            link['refdomain'], link['reftarget'] = 'doc', 'docs/model_zoo'
            link['reftargetid'] = None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect('doctree-read', link_folders)
