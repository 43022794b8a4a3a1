"""Finding out whether a checkpoint's content is what was written."""

import functools
import os
import zipfile
from typing import Any, BinaryIO, Union

_CHUNK = 2**20


def check_sums(file: Union[str, os.PathLike, BinaryIO]) -> None:
    """Compare the content of a file of ``torch.save`` with the checksums in it.

    The file is a zip archive, whose records carry their CRC-32. torch writes these sums and doesn't
    look at them when it reads. Files without sums pass: those of torch before 1.6, which are no
    archives, and those written after ``torch.serialization.set_crc32_options(False)``.

    Args:
        file: A path, or an open binary file that can be sought.

    Raises:
        zipfile.BadZipFile: The content is not what was written.
    """
    if isinstance(file, (str, os.PathLike)):
        status = os.stat(file)
        # One process reads a checkpoint several times.
        _check_path(os.path.realpath(file), status.st_size, status.st_mtime_ns)
    elif hasattr(file, 'seek'):
        position = file.tell()
        try:
            _check_archive(file)
        finally:
            file.seek(position)


@functools.lru_cache(maxsize=64)
def _check_path(path: str, size: int, modified: int) -> None:
    _check_archive(path)


def _check_archive(file: Any) -> None:
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if not record.CRC:  # Without a sum, or empty.
                continue
            with archive.open(record) as content:
                while content.read(_CHUNK):
                    pass
