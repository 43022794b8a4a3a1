"""Data sets that the package brings along."""

from .digits_on_photos import DIGIT_CLASSES, MASK_CLASSES, build_digits_on_photos
from .photo_pairs import build_photo_pairs

__all__ = ['DIGIT_CLASSES', 'MASK_CLASSES', 'build_digits_on_photos', 'build_photo_pairs']
