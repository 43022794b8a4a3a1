"""The errors of the FAQ are those that the package raises."""

import ast
import re
from typing import Iterator

import pytest

from ..test_tools.in_process import ROOT
from .pages import blocks

GAP = '…'


def texts_of(tree: ast.AST) -> Iterator[str]:
    """The strings of a file, with a gap for whatever is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield ''.join(
                part.value if isinstance(part, ast.Constant) else GAP for part in node.values
            )


@pytest.fixture(scope='module')
def texts():
    paths = sorted((ROOT / 'fba_mm').rglob('*.py'))
    return [text for path in paths for text in texts_of(ast.parse(path.read_text()))]


def is_raised(error: str, texts: list) -> bool:
    """Whether a text has all parts of an error, in order."""
    pattern = '.*'.join(re.escape(part) for part in error.split(GAP))
    return any(re.search(pattern, text) for text in texts)


def test_errors(texts):
    errors = [block.text.strip() for block in blocks('docs/faq.md', 'text')]
    assert len(errors) >= 12
    for error in errors:
        assert '\n' not in error and len(error.replace(GAP, '')) > 20, error
        assert is_raised(error, texts), error


def test_an_error_that_nobody_raises_is_found(texts):
    assert not is_raised('LocalBackbone does not train without FBAHooks', texts)
    assert not is_raised('optim_wrapper.type is …, which takes no local gradients', texts)
