"""STL-10: few labelled pictures, larger than CIFAR's."""

from typing import Tuple

import numpy as np
from mmpretrain.registry import DATASETS
from torchvision import datasets as torchvision_datasets

from ..source import Source, SourceFile
from .published_dataset import PublishedDataset

_STL10 = torchvision_datasets.STL10


class _Reader(_STL10):
    """torchvision's reader of files that were checked already.

    torchvision's own check wants all files, also the 2.6 GB of pictures without labels.
    """

    def _check_integrity(self) -> bool:
        return True


@DATASETS.register_module()
class STL10(PublishedDataset):
    """STL-10 (Coates et al., 2011), pictures of 96×96 px in 10 classes.

    5,000 images to train with and 8,000 to test with; those without labels are not used. The
    folder holds ``stl10_binary/train_X.bin``, ``train_y.bin``, ``test_X.bin`` and ``test_y.bin``,
    those of the splits that are used.

    Args:
        data_root: The folder of ``stl10_binary``.
        split: ``'train'`` or ``'test'``.
        download: Fetch the archive (2.6 GB) and unpack it if files aren't there.
        metainfo: Meta information, instead of the classes' names.
        **kwargs: More arguments of mmpretrain's ``BaseDataset``.

    Raises:
        LocalLearningError: An unknown split; files are missing, incomplete, or can't be fetched.

    Example:
        >>> pipeline = [dict(type='mmpretrain.PackInputs')]
        >>> dataset = STL10('data/stl10', split='test', pipeline=pipeline)
        >>> dataset[0]['inputs'].shape
        torch.Size([3, 96, 96])
    """

    METAINFO = dict(
        classes=(
            'airplane',
            'bird',
            'car',
            'cat',
            'deer',
            'dog',
            'horse',
            'monkey',
            'ship',
            'truck',
        )
    )

    @classmethod
    def source(cls, data_root: str, split: str) -> Source:
        """The two files of a split, and the archive of all."""
        cls.check_split(split)
        files = [
            SourceFile(f'{_STL10.base_folder}/{name}', md5)
            for name, md5 in _STL10.train_list + _STL10.test_list
            if name in (f'{split}_X.bin', f'{split}_y.bin')
        ]
        return Source(data_root, files, SourceFile(_STL10.filename, _STL10.tgz_md5))

    def fetch(self) -> None:
        """Download the archive, unless it lies there, and unpack it."""
        torchvision_datasets.utils.download_and_extract_archive(
            _STL10.url, self.data_root, filename=_STL10.filename, md5=_STL10.tgz_md5
        )

    def read(self) -> Tuple[np.ndarray, np.ndarray]:
        """Images and labels; the file counts labels from 1."""
        reader = _Reader(self.data_root, self.split)
        return reader.data, reader.labels
