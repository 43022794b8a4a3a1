"""Classification data sets and their augmentation, registered with mmpretrain.

Importing this package imports mmpretrain, which :mod:`fba_mm` itself does not: MMEngine does so for
configs that name a data set with its prefix, as in ``type='fba_mm.SVHN'``.
"""

from .handwritten_digits import HandwrittenDigits
from .reflect_pad import ReflectPad
from .stl10 import STL10
from .svhn import SVHN

__all__ = ['STL10', 'SVHN', 'HandwrittenDigits', 'ReflectPad']
