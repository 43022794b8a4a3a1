"""Finding the checkpoint that training goes on from."""

import glob
import logging
import os
from typing import Optional

from mmengine.logging import print_log

from ..errors import LocalLearningError
from .resume_state import absent_entries
from .safe_reading import UnusableCheckpoint, read_checkpoint


def find_resumable(work_dir: str, trust: bool = False, since: float = 0.0) -> Optional[str]:
    """The checkpoint to go on from: the last one that was saved, or the last usable one before it.

    Args:
        work_dir: Where ``last_checkpoint`` lies, which names the last one.
        trust: As for :func:`read_checkpoint`.
        since: Files older than that are skipped; a time in seconds since the epoch.

    Returns:
        Its path; None if there was none saved yet.

    Raises:
        LocalLearningError: There is one, but none that is usable; or it needs to run code to load.
    """
    pointer = os.path.join(work_dir, 'last_checkpoint')
    last = None
    if os.path.isfile(pointer):
        with open(pointer, encoding='utf-8', errors='replace') as file:
            last = file.read().strip()
    folders = {os.path.abspath(work_dir), os.path.dirname(os.path.abspath(last or pointer))}
    others = [
        path
        for folder in folders
        for path in glob.glob(os.path.join(folder, '*.pth'))
        if path != last and os.path.getmtime(path) >= since
    ]
    if last and os.path.exists(last) and os.path.getmtime(last) < since:
        last = None
    others.sort(key=os.path.getmtime, reverse=True)
    faults = []
    for path in [last, *others] if last else others:
        try:
            absent = absent_entries(read_checkpoint(path, trust=trust))
        except UnusableCheckpoint as error:
            faults.append(str(error).rpartition(': ')[0])
            continue
        if absent and path == last:
            faults.append(
                f'checkpoint {path} has no {", ".join(absent)}; start from its weights '
                f'instead, --cfg-options load_from={path}'
            )
        if not absent:
            for fault in faults:
                print_log(f'{fault}; it is skipped', 'current', logging.WARNING)
            print_log(f'Going on from {path}', 'current')
            return path
    if faults:
        raise LocalLearningError(
            f'cannot resume in {work_dir}: {faults[0]}. There is no other: give --resume a '
            'path, or another --work-dir to start from the beginning'
        )
    print_log(f'{work_dir} has no checkpoint yet: training starts from the beginning', 'current')
    return None
