"""Handwritten digits that are on every machine with scikit-learn."""

from typing import List, Optional

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from PIL import Image

from ...arguments import check_count
from ...errors import LocalLearningError
from ..digits_on_photos import DIGIT_CLASSES, digit_indices, form_of, load_digits

# Values of ink in scikit-learn's samples go from 0 to this.
_FULL_INK = 16


@DATASETS.register_module()
class HandwrittenDigits(BaseDataset):
    """scikit-learn's 1,797 handwritten digits as colour images, for a machine without data.

    Nothing is read from a folder or downloaded. The 8×8 samples are enlarged (bicubic), white ink
    on black, the same in all three channels.

    The split is fixed, and nothing is drawn: the samples lie as their writers filled in forms, and
    those of the last three forms are the test. So no form is on both sides, which a random split
    would not give, and the classes are balanced in both all the same, because every form holds the
    same digits: 139 to 144 each of the 1,415 training and 35 to 39 of the 382 test images.

    Args:
        split: ``'train'`` or ``'test'``.
        image_size: Height and width in px.
        metainfo: Meta information, instead of the digits' names.
        **kwargs: More arguments of mmpretrain's ``BaseDataset``.

    Raises:
        LocalLearningError: An unknown split or size, or scikit-learn is missing.

    Example:
        >>> dataset = HandwrittenDigits('test', pipeline=[dict(type='mmpretrain.PackInputs')])
        >>> len(dataset), dataset[0]['inputs'].shape
        (382, torch.Size([3, 32, 32]))
    """

    METAINFO = dict(classes=DIGIT_CLASSES)

    def __init__(
        self, split: str = 'train', image_size: int = 32, metainfo: Optional[dict] = None, **kwargs
    ):
        if split not in ('train', 'test'):
            raise LocalLearningError(
                f'HandwrittenDigits: split={split!r} does not exist, give train or test'
            )
        self.split = split
        self.image_size = check_count('HandwrittenDigits: image_size', image_size, least=8)
        super().__init__(ann_file='', metainfo=metainfo, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Items with ``img``, uint8 (H, W, 3), ``gt_label``, ``digit_index`` and its ``form``."""
        digits = load_digits()
        data_list = []
        for index in digit_indices('train' if self.split == 'train' else 'val', len(digits.target)):
            ink = np.rint(digits.images[index] * (255 / _FULL_INK)).astype(np.uint8)
            picture = Image.fromarray(ink).resize([self.image_size] * 2, Image.BICUBIC)
            data_list.append(
                dict(
                    img=np.repeat(np.asarray(picture)[..., None], 3, axis=2),
                    gt_label=int(digits.target[index]),
                    digit_index=index,
                    form=form_of(index),
                )
            )
        return data_list

    def extra_repr(self) -> List[str]:
        """What ``repr()`` says beyond the number of images and classes."""
        return [f'Split: \t{self.split}', f'Image size: \t{self.image_size}']
