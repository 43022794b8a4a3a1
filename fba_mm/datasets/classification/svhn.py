"""SVHN: house numbers."""

from typing import Tuple

import numpy as np
from mmpretrain.registry import DATASETS
from torchvision import datasets as torchvision_datasets

from ..source import Source, SourceFile
from .published_dataset import PublishedDataset


class _Reader(torchvision_datasets.SVHN):
    """torchvision's reader of a file that was checked already."""

    def _check_integrity(self) -> bool:
        return True


@DATASETS.register_module()
class SVHN(PublishedDataset):
    """Street View House Numbers (Netzer et al., 2011), cropped digits of 32×32 px, 10 classes.

    73,257 images to train with, 26,032 to test with, and 531,131 easier ones in the split
    ``'extra'``. The folder holds ``train_32x32.mat``, ``test_32x32.mat``, ``extra_32x32.mat``,
    those of the splits that are used.

    Args:
        data_root: The folder of the files.
        split: ``'train'``, ``'test'`` or ``'extra'``.
        download: Fetch the split's file if it isn't there.
        metainfo: Meta information, instead of the digits' names.
        **kwargs: More arguments of mmpretrain's ``BaseDataset``.

    Raises:
        LocalLearningError: An unknown split; the file is missing, incomplete, or can't be fetched.

    Example:
        >>> pipeline = [dict(type='mmpretrain.PackInputs')]
        >>> dataset = SVHN('data/svhn', split='test', pipeline=pipeline)
        >>> dataset[0]['inputs'].shape
        torch.Size([3, 32, 32])
    """

    METAINFO = dict(classes=tuple('0123456789'))
    SPLITS = ('train', 'test', 'extra')

    @classmethod
    def source(cls, data_root: str, split: str) -> Source:
        """The one file of a split."""
        cls.check_split(split)
        _, name, md5 = torchvision_datasets.SVHN.split_list[split]
        return Source(data_root, [SourceFile(name, md5)])

    def fetch(self) -> None:
        """Download the split's file."""
        url, name, md5 = torchvision_datasets.SVHN.split_list[self.split]
        torchvision_datasets.utils.download_url(url, self.data_root, name, md5)

    def read(self) -> Tuple[np.ndarray, np.ndarray]:
        """Images and labels; the file's label 10 is the digit 0."""
        reader = _Reader(self.data_root, self.split)
        return reader.data, reader.labels
