"""Parts of models that keep auxiliary networks small."""
from .light_detector import light_retinanet
from .sliced_focal_loss import SlicedFocalLoss

__all__ = ['SlicedFocalLoss', 'light_retinanet']
