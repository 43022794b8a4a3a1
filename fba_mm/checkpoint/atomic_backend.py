"""Files that are there completely, or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, Union

from mmengine.fileio import LocalBackend, register_backend


@contextmanager
def replacing(path: Union[str, Path]) -> Iterator[BinaryIO]:
    """Write a file beside ``path``, which takes its place in one step when all is on the disk.

    One process may write to a path at a time. What a killed process leaves behind has the suffix
    ``.tmp``, and the next one to write there replaces it.

    Args:
        path: Where to. Its directory is made if it isn't there.

    Example:
        >>> with replacing('work_dirs/best.pth') as file:
        ...     torch.save(dict(epoch=1), file)
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    # The new name is a matter of the directory; not every file system lets one sync it.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """MMEngine's backend for local files, whose writes are never seen half done.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='CheckpointHook', backend_args=dict(backend='atomic')))
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write a file.

        Args:
            obj: Its content.
            filepath: Its path.
        """
        with replacing(filepath) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        """Write a text file.

        Args:
            obj: Its content.
            filepath: Its path.
            encoding: Of the text.
        """
        self.put(obj.encode(encoding), filepath)
