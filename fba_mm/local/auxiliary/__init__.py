"""Auxiliary networks, one file per method.

A new method is one new file in this folder: it is imported, and so registered, here by itself.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import Auxiliary, auxiliary_class
from .slm import SLM

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = ['SLM', 'Auxiliary', 'auxiliary_class']
