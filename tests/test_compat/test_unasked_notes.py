"""Notes of other packages that are dropped, and those beside them that aren't."""

import warnings

from mmengine import logging
from mmengine.fileio import FileClient, file_client

from fba_mm.compat import drop_unasked_notes


def test_notes(capsys):
    drop_unasked_notes()
    FileClient('disk')
    logging.print_log('Could not import OneDL. Skipping OneDL datasets.')
    assert capsys.readouterr() == ('', '')
    logging.print_log('Could not import mine')
    file_client.print_log('"FileClient" is mine')
    assert capsys.readouterr().out == 'Could not import mine\n"FileClient" is mine\n'


def test_again_changes_nothing():
    patched = logging.print_log
    drop_unasked_notes()
    assert logging.print_log is patched is not patched.__wrapped__


def test_warnings_of_the_same_words_elsewhere():
    draw = 'The draw is False, it means that the hook will not take effect'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        drop_unasked_notes()  # The filters are pytest's own within a test.
        warnings.warn_explicit(draw, UserWarning, 'f.py', 1, module='mmseg.engine.hooks.v')
        text = 'pkg_resources is deprecated as an API. See'
        warnings.warn_explicit(text, UserWarning, 'f.py', 1, module='importlib')
        assert caught == []
        warnings.warn_explicit(text, UserWarning, 'f.py', 1, module='mine')
        warnings.warn_explicit(draw, UserWarning, 'f.py', 1, module='mine.hooks')
        warnings.warn_explicit('Draw is', UserWarning, 'f.py', 1, module='mmseg.engine.hooks.v')
    assert len(caught) == 3
