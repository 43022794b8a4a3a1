"""What data sets that torchvision can fetch and read have in common."""

import os
from abc import ABCMeta, abstractmethod
from typing import List, Optional, Tuple

import numpy as np
from mmengine import dist
from mmpretrain.datasets import BaseDataset

from ...errors import LocalLearningError
from ..source import Source


class PublishedDataset(BaseDataset, metaclass=ABCMeta):
    """A data set in its publisher's files, fetched on request and checked before it is read.

    Items are as those of mmpretrain's CIFAR10: ``img``, uint8 RGB of (H, W, 3), and ``gt_label``.

    Args:
        data_root: The folder of the files; ``~`` is the home directory.
        split: One of :attr:`SPLITS`.
        download: Fetch files that aren't there. Files that are there are never replaced.
        metainfo: Meta information of the data set, instead of the class's own.
        **kwargs: More arguments of mmpretrain's ``BaseDataset``.

    Raises:
        LocalLearningError: An unknown split; files are missing, incomplete, or can't be fetched.
    """

    SPLITS: Tuple[str, ...] = ('train', 'test')

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        download: bool = False,
        metainfo: Optional[dict] = None,
        **kwargs,
    ):
        self.check_split(split)
        if not data_root:
            raise LocalLearningError(
                f'{type(self).__name__}: give a data_root, the folder of its files'
            )
        self.split = split
        self.download = download
        super().__init__(
            ann_file='', data_root=os.path.expanduser(data_root), metainfo=metainfo, **kwargs
        )

    @classmethod
    def check_split(cls, split: str) -> None:
        """Refuse a split that doesn't exist.

        Args:
            split: Its name.

        Raises:
            LocalLearningError: Names those that do.
        """
        if split not in cls.SPLITS:
            raise LocalLearningError(
                f'{cls.__name__}: split={split!r} does not exist, give one '
                f'of {", ".join(cls.SPLITS)}'
            )

    @classmethod
    @abstractmethod
    def source(cls, data_root: str, split: str) -> Source:
        """The files that a split consists of.

        Args:
            data_root: The data set's folder.
            split: One of :attr:`SPLITS`.
        """

    @abstractmethod
    def fetch(self) -> None:
        """Download, with a progress bar, what is missing, and check it."""

    @abstractmethod
    def read(self) -> Tuple[np.ndarray, np.ndarray]:
        """Read the split from files that were checked.

        Returns:
            Images, uint8 of (N, 3, H, W), and labels from 0, of (N,).
        """

    def load_data_list(self) -> List[dict]:
        """Images and labels, from files that are there and whole."""
        source = self.source(self.data_root, self.split)
        # Refused before anything is fetched: torchvision would write over an incomplete file.
        source.check(download=self.download)
        if self.download:
            try:
                if dist.is_main_process() and source.missing():
                    self._fetch(source)
            finally:
                dist.barrier()
            source.check()
        images, labels = self.read()
        # Rows that lie one after the other, as files of images have them.
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return [dict(img=image, gt_label=int(label)) for image, label in zip(images, labels)]

    def _fetch(self, source: Source) -> None:
        try:
            self.fetch()
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors.
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise LocalLearningError(
                f'data not found in {os.path.normpath(source.root)}, and fetching it failed '
                f'({reason[:200]}): check the network connection, or put '
                f'{source.files[0].name} there'
            ) from error

    def extra_repr(self) -> List[str]:
        """What ``repr()`` says beyond the number of images and classes."""
        return [f'Folder: \t{self.data_root}', f'Split: \t{self.split}']
