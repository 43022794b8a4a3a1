"""Blocks of code on the pages that readers copy from."""

import re
from typing import Iterator, NamedTuple, Optional

from markdown_it import MarkdownIt

from ..test_tools.in_process import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
)


class Block(NamedTuple):
    """A fenced block.

    Args:
        page: Where it stands.
        line: Its first line.
        language: What follows the fence.
        text: Its lines.
        note: What an HTML comment before it says, for the tests alone.
    """

    page: str
    line: int
    language: str
    text: str
    note: Optional[str]

    @property
    def where(self) -> str:
        """For messages."""
        return f'{self.page}:{self.line}'

    @property
    def file(self) -> Optional[str]:
        """The name that its first line gives it: ``# my_model.py``."""
        found = re.match(r'# (\w+\.py)\n', self.text)
        return found and found[1]


def blocks(page: str, *languages: str) -> Iterator[Block]:
    """The fenced blocks of a page, of some languages or all; directives of the site aside."""
    note = None
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding='utf-8')):
        if token.type == 'html_block':
            found = re.fullmatch(r'<!-- (.*) -->\s*', token.content)
            note = found and found[1]
        elif token.type == 'fence':
            language = token.info.strip()
            if not language.startswith('{') and (not languages or language in languages):
                yield Block(page, token.map[0] + 2, language, token.content, note)
            note = None
        elif token.level == 0 and token.nesting >= 0:
            note = None
