"""Which checkpoints a training wrote itself: the only ones that it replaces or removes."""

import os
import re
from typing import List, Sequence

from .atomic_backend import replacing

# Lies beside the checkpoints; one name per line.
_RECORD = '.own_checkpoints'


class OwnCheckpoints:
    """The checkpoints in a folder that one training, resumed or not, wrote there.

    A name is recorded before its file is written, so that all files of a training are known even if
    it is killed.

    Args:
        folder: Where checkpoints are written.
        aside: A folder for what others left there and this training would replace.
        local: Whether these are folders of this machine's file system. Elsewhere nothing is
            recorded, and nothing moved: files of this process alone are known.

    Attributes:
        recorded: Whether a training that records its files has written to the folder.

    Example:
        >>> own = OwnCheckpoints('work_dirs/retinanet', 'work_dirs/retinanet/before')
        >>> own.add('epoch_1.pth')
        >>> 'epoch_1.pth' in own
        True
    """

    def __init__(self, folder: str, aside: str, local: bool = True):
        self.folder, self.aside, self.local = folder, aside, local
        self._record = os.path.join(folder, _RECORD)
        self.recorded = local and os.path.isfile(self._record)
        self._names: List[str] = []
        if self.recorded:
            with open(self._record, encoding='utf-8', errors='replace') as file:
                self._names = file.read().splitlines()

    def __contains__(self, name: str) -> bool:
        # A name with a folder in it is none of ours, whoever wrote it into the record.
        return name in self._names and os.path.basename(name) == name

    def add(self, name: str) -> None:
        """Record a file that is about to be written.

        Args:
            name: Its name in the folder.
        """
        if name not in self:
            self._names.append(name)
            if not self.local:
                return
            with replacing(self._record) as file:
                file.write('\n'.join([*self._names, '']).encode())

    def set_aside(self, name: str) -> None:
        """Make way for a file of this training, if there is one of that name by another.

        Args:
            name: Its name in the folder.
        """
        if name not in self:
            self._move([name])

    def set_all_aside(self, templates: Sequence[str]) -> List[str]:
        """Move away all checkpoints that an earlier training left.

        Args:
            templates: What they may be called beside the recorded names: file names with ``{}``
                for the number of the epoch or iteration. Names of the best ones end in such a name.

        Returns:
            Their names.
        """
        numbered = '|'.join(re.escape(t).replace(r'\{\}', r'\d+') for t in templates)
        like = re.compile(f'(best_.+_)?({numbered})')
        there = os.listdir(self.folder) if self.local and os.path.isdir(self.folder) else []
        found = sorted(name for name in there if name in self or like.fullmatch(name))
        self._move(found)
        self._names.clear()
        return found

    def _move(self, names: Sequence[str]) -> None:
        for name in names:
            path = os.path.join(self.folder, name)
            if self.local and os.path.lexists(path):
                os.makedirs(self.aside, exist_ok=True)
                os.rename(path, os.path.join(self.aside, name))
