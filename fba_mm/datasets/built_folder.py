"""A data set's folder appears when it is complete, and not before."""

import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from ..errors import LocalLearningError


@contextmanager
def building(out: Path, is_there: Callable[[], bool]) -> Iterator[Path]:
    """A folder to build in, which takes its name when the context ends without an exception.

    What it replaces is deleted only after that. A build that is killed leaves a hidden
    ``.NAME.building-*`` beside ``out`` that can be deleted.

    Args:
        out: The folder's name.
        is_there: Asked in the end: True if another process, say another rank of the same job, has
            built the same meanwhile. Raises where ``out`` holds what must not be replaced.

    Example:
        >>> with building(Path('data/photos'), lambda: False) as folder:
        ...     _ = (folder / 'readme.txt').write_text('complete')
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f'.{out.name}.building-{uuid.uuid4().hex[:8]}')
    folder.mkdir()
    try:
        yield folder
        if not is_there():
            _publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path) -> None:
    replaced = None
    if out.exists():
        replaced = out.with_name(folder.name.replace('building', 'replaced'))
        out.rename(replaced)
    try:
        folder.rename(out)
    except BaseException:
        if replaced is not None:
            replaced.rename(out)
        raise
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def check_own(out: Path, is_own: Callable[[str], bool]) -> None:
    """Refuse to replace a folder that holds anything but a build's files.

    Args:
        out: The folder.
        is_own: Whether a build writes the file or folder of that path, relative to ``out``.

    Raises:
        LocalLearningError: Names a file or folder that no build wrote.
    """
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out).as_posix()
        # A link is a user's, whatever it is called.
        if path.is_symlink() or not is_own(name):
            raise LocalLearningError(
                f'{out} holds files that no build wrote ({name}): give '
                'another out_dir, or move them away'
            )


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, one line elsewhere; gives the function that advances it.

    Args:
        what: What is being done.
        total: Number of images.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f'{what}: {total} images')
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
