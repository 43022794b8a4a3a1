"""Classification data sets, registered with mmpretrain.

Importing this package imports mmpretrain, which :mod:`fba_mm` itself does not: configs that use it
say ``custom_imports = dict(imports=['fba_mm', 'fba_mm.datasets.classification'])``.
"""
from .handwritten_digits import HandwrittenDigits
from .stl10 import STL10
from .svhn import SVHN

__all__ = ['STL10', 'SVHN', 'HandwrittenDigits']
