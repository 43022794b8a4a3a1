"""One training per work directory."""

import errno
import logging
import os
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import Iterator

from mmengine.dist import is_main_process
from mmengine.logging import print_log

from ..distributed.processes import joint_errors
from ..errors import LocalLearningError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NAME = '.lock'


@contextmanager
def work_dir_lock(work_dir: str) -> Iterator[None]:
    """Keep other trainings out of a work directory within this context.

    The operating system releases the lock when the process ends, however it ends. It is a POSIX
    record lock, which NFS passes on to other machines; of several processes of one job, the first
    takes it. Where the system or the file system knows no locks, nothing is locked.

    Args:
        work_dir: The directory, made if it isn't there.

    Raises:
        LocalLearningError: In all processes, if another training holds the lock.

    Example:
        >>> with work_dir_lock('work_dirs/retinanet'):
        ...     runner.train()
    """
    # Closing the file is releasing it. It stays: another process may be waiting at it.
    with ExitStack() as stack:
        with joint_errors():
            if is_main_process() and fcntl is not None:
                os.makedirs(work_dir, exist_ok=True)
                path = os.path.join(work_dir, _NAME)
                _lock(stack.enter_context(open(path, 'a+', encoding='utf-8')), work_dir)
        yield


def _lock(file, work_dir: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print_log(
                f'{work_dir} cannot be locked ({error.strerror}): start no second training in it',
                'current',
                logging.WARNING,
            )
            return
        file.seek(0)
        holder = file.read(200).strip() or 'another process'
        raise LocalLearningError(
            f'another training is writing to work_dir {work_dir} ({holder}): choose another '
            '--work-dir, or wait for its end'
        ) from error
    file.truncate(0)
    file.write(
        f'process {os.getpid()} on {socket.gethostname()}, since '
        f'{time.strftime("%Y-%m-%d %H:%M:%S")}'
    )
    file.flush()
