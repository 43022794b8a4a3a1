"""A training's losses, metrics, memory and time, as MMEngine has logged them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

from ..errors import LocalLearningError

Series = Tuple[List[float], List[float]]
# By what a training goes on, and the entry of a row that says so.
X_AXES = {'iterations': 'iter', 'epochs': 'epoch', 'time': 'seconds'}
# What validation logs beside its metrics.
_NO_METRICS = ('step', 'time', 'data_time', *X_AXES.values())
# The end of the name of what papers report, the usual first.
_HEADLINES = ('mAP', 'top1', 'mIoU', 'PSNR', 'accuracy')


@dataclass
class TrainingLog:
    """The rows of ``vis_data/scalars.json``, with the iteration, epoch and seconds of each.

    Attributes:
        train: Rows of the training, such as ``{'iter': 20, 'loss': 1.3, 'local_1.loss': 1.9, …}``.
            ``epoch`` is a fraction, ``seconds`` the time that iterations have taken up to here.
        val: Rows of validations, with the same three.

    Example:
        >>> log = TrainingLog.read('work_dirs/retinanet_r50_fba')
        >>> iterations, losses = log.series('local_1.loss')
    """

    train: List[Dict[str, Any]]
    val: List[Dict[str, Any]]

    @classmethod
    def read(cls, path: Union[str, Path]) -> 'TrainingLog':
        """Read the log of a training, resumed or not.

        What a resumed training did again takes the place of what the one before had logged.

        Args:
            path: A work directory, or a ``scalars.json``.

        Raises:
            LocalLearningError: There is no log, or it can't be read.
        """
        path = Path(path)
        files = [path] if path.is_file() else sorted(path.glob('*/vis_data/scalars.json'))
        if not files:
            raise LocalLearningError(
                f'{path} has no log of a training (*/vis_data/scalars.json): give the work '
                'directory of one'
            )
        rows: List[Dict[str, Any]] = []
        for file in files:
            found = _rows_of(file)
            first = next((row['iter'] for row in found if 'iter' in row), None)
            if first is not None:
                rows = _before(rows, first)
            rows += found
        if not any('iter' in row for row in rows):
            raise LocalLearningError(f'{path}: its log has no iteration of a training yet')
        return cls._placed(rows)

    @classmethod
    def _placed(cls, rows: List[Dict[str, Any]]) -> 'TrainingLog':
        train = [row for row in rows if 'iter' in row]
        length = _epoch_length(train)
        seconds, last = 0.0, 0
        log = cls([], [])
        for row in rows:
            if 'iter' in row:
                seconds += row.get('time', 0.0) * (row['iter'] - last)
                last = row['iter']
                epoch = last / length if length else float('nan')
                log.train.append({**row, 'epoch': epoch, 'seconds': seconds})
            else:
                # A loop over epochs numbers its validations by these, others by iterations.
                iteration = row['step'] * length if length else row['step']
                epoch = float(row['step']) if length else float('nan')
                log.val.append({**row, 'iter': iteration, 'epoch': epoch, 'seconds': seconds})
        return log

    @property
    def has_epochs(self) -> bool:
        """Whether it was trained in epochs."""
        return self.train[-1]['epoch'] == self.train[-1]['epoch']

    @property
    def metrics(self) -> List[str]:
        """Names of the metrics of the validation, that of papers first, local modules' left out."""
        names = dict.fromkeys(
            name
            for row in self.val
            for name, value in row.items()
            if name not in _NO_METRICS
            and isinstance(value, (int, float))
            and not name.startswith('local_')
        )

        def rank(name: str) -> int:
            ends = [i for i, end in enumerate(_HEADLINES) if name.endswith(end)]
            return ends[0] if ends else len(_HEADLINES)

        return sorted(names, key=rank)

    def series(self, name: str, x: str = 'iterations') -> Series:
        """One quantity over the training.

        Args:
            name: As it is logged.
            x: ``'iterations'``, ``'epochs'`` or ``'time'`` (seconds of iterations, validation and
                start left out).

        Returns:
            Positions and values, of the training's rows, or where these lack it of validations.
        """
        rows = next(
            (
                found
                for part in (self.train, self.val)
                for found in [[row for row in part if isinstance(row.get(name), (int, float))]]
                if found
            ),
            [],
        )
        return [row[X_AXES[x]] for row in rows], [row[name] for row in rows]

    def modules(self, what: str, x: str = 'iterations') -> Dict[int, Series]:
        """One quantity of each local module over the training, by the module's number from 1.

        The last module's loss and accuracy are those of the whole network. Without local learning
        there are none.

        Args:
            what: ``'loss'``, ``'accuracy'`` or ``'memory'``.
            x: As of :meth:`series`.
        """
        pattern = re.compile(rf'local_(\d+)[./]{what}')
        logged = {name for row in (*self.train, *self.val) for name in row}
        names = {int(m[1]): m[0] for m in map(pattern.fullmatch, logged) if m}
        whole = {'loss': 'loss', 'accuracy': next(iter(self.metrics), '')}.get(what)
        if names and whole:
            names[max(names) + 1] = whole
        return {number: self.series(names[number], x) for number in sorted(names)}


def _rows_of(file: Path) -> List[Dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise LocalLearningError(
            f'{file} cannot be read ({error}): give the work directory of a training'
        ) from error
    return [row for row in rows if isinstance(row, dict) and 'step' in row]


def _before(rows: Sequence[Dict[str, Any]], first: int) -> List[Dict[str, Any]]:
    """What was logged before an iteration that was done again."""
    for index, row in enumerate(rows):
        if row.get('iter', 0) >= first:
            return list(rows[:index])
    return list(rows)


def _epoch_length(train: Sequence[Dict[str, Any]]) -> int:
    """Iterations of an epoch, told by the rows' numbers; 0 for trainings without epochs."""
    if 'epoch' not in train[-1]:
        return 0
    first: Dict[int, int] = {}
    for row in train:
        first.setdefault(row['epoch'], row['iter'])
    start, end = min(first), max(first)
    if start == end:
        return max(row['iter'] for row in train) // start
    # All epochs log after as many iterations for the first time.
    return (first[end] - first[start]) // (end - start)
