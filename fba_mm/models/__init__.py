"""Parts of models that keep auxiliary networks small."""
from .sliced_focal_loss import SlicedFocalLoss

__all__ = ['SlicedFocalLoss']
