"""Parts of models that keep auxiliary networks small."""

from .cifar_resnet import cifar_resnet
from .in_slices import in_slices
from .light_detector import light_retinanet
from .light_segmentor import light_fcn
from .recomputed import recomputed
from .sliced_focal_loss import SlicedFocalLoss

__all__ = [
    'SlicedFocalLoss',
    'cifar_resnet',
    'in_slices',
    'light_fcn',
    'light_retinanet',
    'recomputed',
]
