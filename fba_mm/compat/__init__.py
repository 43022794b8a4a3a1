"""What lets the installed OpenMMLab versions work together.

``mmcv_ops.py`` is the entrance; the ``*_ops.py`` files beside it hold the operators that it offers
in place of mmcv's compiled ones, under the names and signatures of ``mmcv._ext``.
``mmagic_import.py`` lets mmagic be imported beside newer versions than it asks for,
``mmseg_name.py`` lets MMEngine find mmseg under the name that its distribution has today, and
``config_names.py`` this package's configs. ``unasked_notes.py`` drops what other packages print for
nothing.
"""

from .config_names import install_config_names
from .mmagic_import import install_mmagic_import
from .mmcv_ops import MissingOpError, install_mmcv_ops
from .mmseg_name import install_mmseg_name
from .unasked_notes import drop_unasked_notes

__all__ = [
    'MissingOpError',
    'drop_unasked_notes',
    'install_config_names',
    'install_mmagic_import',
    'install_mmcv_ops',
    'install_mmseg_name',
]
