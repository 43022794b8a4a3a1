"""Padding by the image's own pixels."""

import mmcv
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ...arguments import check_count


@TRANSFORMS.register_module()
class ReflectPad(BaseTransform):
    """Pads an image on all sides by its own pixels, mirrored at the border.

    For a random crop behind it, as CIFAR's images are augmented in the code released with InfoPro,
    AugLocal and MAN. mmpretrain's ``RandomCrop`` has a ``padding_mode``, but its ``padding`` is of
    one value whatever the mode.

    Args:
        padding: Pixels on each side, fewer than the image has.

    Raises:
        LocalLearningError: ``padding`` is no number of pixels.

    Example:
        >>> pad = dict(type='fba_mm.ReflectPad', padding=4)
        >>> pipeline = [pad, dict(type='RandomCrop', crop_size=32)]
    """

    def __init__(self, padding: int):
        self.padding = check_count('ReflectPad: padding', padding, what='pixels')

    def transform(self, results: dict) -> dict:
        """Pad ``results['img']``, of (H, W, C) or (H, W)."""
        results['img'] = mmcv.impad(results['img'], padding=self.padding, padding_mode='reflect')
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(padding={self.padding})'
