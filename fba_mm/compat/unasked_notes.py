"""Drop what other packages print whenever they are used, and nobody can act on."""

import logging
import re
import sys
import warnings
from functools import wraps

# By their first words.
_NOTES = (
    # mmdet, mmpretrain and mmseg, once each: a data service of one company isn't installed.
    'Could not import OneDL',
    # mmengine of its own hooks, which use what it means to remove.
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias of "LocalBackend"',
)
# Warnings, and the modules that they come from: of options that a stock config leaves alone.
_WARNINGS = (
    ('faster_coco_eval is not installed', 'mmdet.evaluation'),
    ('Default ``avg_non_ignore`` is False', 'mmseg.models.losses'),
    ('The draw is False', 'mmseg.engine.hooks'),
    # The original mmengine imports it, and then reloads it.
    ('pkg_resources is deprecated', 'mmengine'),
    ('pkg_resources is deprecated', 'importlib'),
)
# Where print_log() has been imported to by the time this package is; others import it from there.
_PRINTERS = ('mmengine.logging', 'mmengine.logging.logger', 'mmengine.fileio.file_client')


def drop_unasked_notes() -> None:
    """Let MMEngine's ``print_log`` pass over some notes, and Python over some warnings.

    Each is named by its words, and warnings by their module too: others of the same packages are
    printed as before. Again changes nothing.

    Example:
        >>> from fba_mm.compat import drop_unasked_notes
        >>> drop_unasked_notes()
        >>> import mmdet.datasets  # says nothing of data sets that aren't there
    """
    import mmengine.fileio  # noqa: F401
    from mmengine.logging import print_log

    for message, module in _WARNINGS:
        warnings.filterwarnings('ignore', re.escape(message), module=re.escape(module))
    if hasattr(print_log, '__wrapped__'):
        return

    @wraps(print_log)
    def without_notes(msg, logger=None, level=logging.INFO):
        if not str(msg).startswith(_NOTES):
            print_log(msg, logger, level)

    for name in _PRINTERS:
        sys.modules[name].print_log = without_notes
