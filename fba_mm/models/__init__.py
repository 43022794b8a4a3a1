"""Parts of models that keep auxiliary networks small."""
from .cifar_resnet import cifar_resnet
from .light_detector import light_retinanet
from .light_segmentor import light_fcn
from .sliced_focal_loss import SlicedFocalLoss

__all__ = ['SlicedFocalLoss', 'cifar_resnet', 'light_fcn', 'light_retinanet']
