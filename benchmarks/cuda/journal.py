"""Rows of a run that may be cut off at any time, and the journal by which it goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence


@dataclass(frozen=True)
class Row:
    """Something to measure.

    Attributes:
        name: ``'kind/what'``.
        run: Measures it. Called with the moment (``time.time()``) at which everything ends; returns
            what can be written as JSON.
        seconds: It is stopped if it takes longer.
        place: What the result depends on besides the row: device, versions.
    """

    name: str
    run: Callable[[float], dict]
    seconds: float
    place: dict


class Journal:
    """A file with a line for the beginning and one for the end of each row.

    Args:
        path: Of the file, JSON lines. Several processes may append to it.
    """

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> List[dict]:
        """All complete lines, in order."""
        if not self.path.exists():
            return []
        return [
            json.loads(line) for line in self.path.read_text().splitlines() if line.endswith('}')
        ]

    def append(self, **line) -> None:
        """Write a line; one with ``seconds``, of a row that has ended, gets the time of day."""
        if 'seconds' in line:
            line['ended'] = time.time()
        text = json.dumps(line) + '\n'
        with self.path.open('a') as file:
            file.write(text)

    def ends(self) -> Dict[str, List[dict]]:
        """The last line of each row that has ended, by name, one for each place."""
        found: Dict[str, Dict[str, dict]] = {}
        for line in self.lines():
            if 'seconds' in line:
                found.setdefault(line['row'], {})[json.dumps(line['place'])] = line
        return {name: list(places.values()) for name, places in found.items()}

    def pending(self, rows: Sequence[Row], since: float) -> List[Row]:
        """The rows without a result: those not tried yet, then those that failed.

        Args:
            rows: To choose from.
            since: What failed later than this moment (``time.time()``) isn't tried again.
        """
        ends = self.ends()
        new, failed = [], []
        for row in rows:
            here = [line for line in ends.get(row.name, []) if line['place'] == row.place]
            if not here:
                new.append(row)
            elif 'error' in here[0] and here[0]['ended'] < since:
                failed.append(row)
        return new + failed

    def under_way(self, worker: int) -> Optional[dict]:
        """The beginning of the row that a worker has begun and not ended."""
        begun = None
        for line in self.lines():
            if line.get('worker') == worker:
                begun = None if 'seconds' in line else line
        return begun


def work(rows: Sequence[Row], journal: Journal, since: float, deadline: float) -> None:
    """Go through the rows that have no result, in this process.

    Args:
        rows: In order of worth.
        journal: Takes their results.
        since: When all began; see :meth:`Journal.pending`.
        deadline: No row begins that needs more than three times what is left.
    """
    for row in journal.pending(rows, since):
        start = time.time()
        if start + row.seconds / 3 > deadline:
            continue
        line = dict(row=row.name, place=row.place, worker=os.getpid())
        journal.append(**line, begun=start, limit=row.seconds)
        try:
            outcome = dict(found=row.run(deadline))
        except Exception as error:
            traceback.print_exc()
            outcome = dict(error=f'{type(error).__name__}: {error}'[:2000])
        journal.append(**line, seconds=time.time() - start, **outcome)
        if 'CUDA error' in outcome.get('error', ''):
            sys.exit(3)  # Nothing works in this process any more.


def supervise(command: Sequence[str], journal: Journal, deadline: float, log: Path) -> None:
    """Let a process go through its rows, and another one go on where it died or hung.

    Args:
        command: Calls :func:`work`.
        journal: Where it writes to.
        deadline: When it is stopped, whatever it does.
        log: Takes what it prints.
    """
    without_a_row = 0
    while time.time() < deadline and without_a_row < 2:
        with log.open('a') as file:
            # A session of its own: what it has started ends with it.
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        reason = _watch(process, journal, deadline)
        begun = journal.under_way(process.pid)
        if process.returncode == 0 or reason == 'deadline':
            return
        if begun is not None:
            line = dict(row=begun['row'], place=begun['place'], worker=process.pid)
            journal.append(**line, seconds=time.time() - begun['begun'], error=reason)
        worked = any(line.get('worker') == process.pid for line in journal.lines())
        without_a_row = 0 if worked else without_a_row + 1


def _watch(process: subprocess.Popen, journal: Journal, deadline: float) -> str:
    """Wait for the end of a process, or bring it about; says why."""
    while process.poll() is None:
        begun = journal.under_way(process.pid)
        now = time.time()
        if now > deadline or (begun is not None and now > begun['begun'] + begun['limit']):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 'deadline' if now > deadline else f'stopped after {begun["limit"]:.0f} s'
        time.sleep(0.1)
    return f'its process ended with {process.returncode}'


def supervise_all(
    commands: Sequence[Sequence[str]], journal: Journal, deadline: float, log: Path
) -> None:
    """:func:`supervise` several processes at a time."""
    threads = [
        threading.Thread(target=supervise, args=(command, journal, deadline, log))
        for command in commands
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
