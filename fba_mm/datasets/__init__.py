"""Data sets that the package brings along."""
from .digits_on_photos import DIGIT_CLASSES, build_digits_on_photos

__all__ = ['DIGIT_CLASSES', 'build_digits_on_photos']
