"""The files of a published data set: whether they are there and whole, before they are read."""

import os
from functools import lru_cache
from typing import List, NamedTuple, Optional

from ..errors import LocalLearningError


class SourceFile(NamedTuple):
    """A file as its publisher made it.

    Args:
        name: Path below the data set's folder.
        md5: Its checksum, 32 hexadecimal digits.
    """

    name: str
    md5: str


class Source(NamedTuple):
    """What has to lie in a folder so that a data set can be read.

    Args:
        root: The folder.
        files: What is read.
        archive: What the files come in, if they do; it need not be kept.

    Example:
        >>> file = SourceFile('train_32x32.mat', 'e26dedcc434d2e4c54c9b2d4a06d8373')
        >>> Source('data/svhn', [file]).check('train_dataloader.dataset.')
    """

    root: str
    files: List[SourceFile]
    archive: Optional[SourceFile] = None

    def missing(self) -> List[str]:
        """Names of the files that aren't there, in the order in which they are read."""
        return [
            file.name
            for file in self.files
            if not os.path.isfile(os.path.join(self.root, file.name))
        ]

    def check(self, where: str = '', download: bool = False) -> None:
        """Refuse files that aren't there or aren't whole. Nothing is changed or deleted.

        Args:
            where: Where the data set stands in a config, with a dot at its end.
            download: Files that aren't there are going to be fetched.

        Raises:
            LocalLearningError: Names the file and how to fix it.
        """
        missing = self.missing()
        to_check = [file for file in self.files if file.name not in missing]
        # What is left of an interrupted download would be unpacked, or written over.
        if (
            missing
            and self.archive is not None
            and os.path.isfile(os.path.join(self.root, self.archive.name))
        ):
            to_check.append(self.archive)
        for file in to_check:
            path = os.path.join(self.root, file.name)
            if _md5(path, os.path.getsize(path), os.stat(path).st_mtime_ns) != file.md5:
                raise LocalLearningError(
                    f'{path} is incomplete or damaged (its checksum differs): delete it and set '
                    f'{where}download=True to fetch it again, or put a whole copy there'
                )
        if missing and not download:
            some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
            raise LocalLearningError(
                f'data not found in {os.path.normpath(self.root)}: set {where}download=True to '
                f'fetch it, or put {some} there'
            )


@lru_cache(maxsize=None)
def _md5(path: str, size: int, changed_ns: int) -> str:
    # Imported where it is needed: a detector's user has no need of it.
    from torchvision.datasets.utils import calculate_md5

    # A file is read once per process, not once per dataset: STL-10's pictures are gigabytes.
    return calculate_md5(path)


def source_of(kind: type, data_root: str, split: str = 'train') -> Optional[Source]:
    """The files that a dataset class reads.

    Args:
        kind: A dataset class. SVHN and STL10 of this package say it themselves; mmpretrain's
            CIFAR10 and CIFAR100 have lists.
        data_root: The data set's folder.
        split: The split, where splits lie in files of their own.

    Returns:
        None for a class of another kind.

    Example:
        >>> from mmpretrain.datasets import CIFAR10
        >>> source_of(CIFAR10, 'data/cifar10').missing()[0]
        'cifar-10-batches-py/data_batch_1'
    """
    if hasattr(kind, 'source'):
        return kind.source(data_root, split)
    if not all(
        hasattr(kind, name)
        for name in ('train_list', 'test_list', 'base_folder', 'filename', 'tgz_md5')
    ):
        return None
    # mmpretrain reads a split of them only when the other one is whole, too.
    files = [
        SourceFile(f'{kind.base_folder}/{name}', md5)
        for name, md5 in [*kind.train_list, *kind.test_list]
    ]
    return Source(data_root, files, SourceFile(kind.filename, kind.tgz_md5))


def joined(root: str, path: str) -> str:
    """A path below a data set's root; one that is empty or on another machine stays as it is.

    Args:
        root: The data set's ``data_root``.
        path: As a config has it.
    """
    return path if not path or '://' in path else os.path.join(root, path)
