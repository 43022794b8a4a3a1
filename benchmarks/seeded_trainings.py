"""Trainings of variants with several seeds, each a process of its own; goes on where it stopped."""

import hashlib
import json
import math
import multiprocessing
import os
import re
import runpy
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Union

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fba_mm.config import settings_of
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).resolve().parent.parent
# What tools/train.py imports.
TOOL_IMPORTS = ('fba_mm.command_line', 'fba_mm.planning', 'fba_mm.preflight.training')
# Of two threads that look for a process's end, one would miss its exit status.
_ONE_AT_A_TIME = threading.Lock()

# results[variant][seed] holds what was found of one training.
Results = Dict[str, Dict[int, dict]]

# What FBAHook says of a training that it stops.
_DIVERGED = re.compile(r'iteration \d+: the loss of .* is -?(nan|inf)')


def digest_of(config: Config) -> str:
    """The same for configs with the same settings, wherever these come from."""
    settings = json.dumps(settings_of(config), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def train(
    folder: Path,
    config: Union[str, Config],
    figures_of: Callable[[Path], dict],
    threads: int = 1,
    may_diverge: bool = False,
) -> dict:
    """Train a config with ``tools/train.py``, or return the result of the run that did.

    Args:
        folder: Of this training. The result lies there as ``result.json``; of a training that was
            cut off, nothing is used.
        config: The config, or its text.
        figures_of: Reads what is asked for from the work directory.
        threads: CPU threads.
        may_diverge: Take it for a result, ``diverged=True``, that a loss is no number.

    Raises:
        LocalLearningError: The training failed; says what it said last, and names its log. Or there
            is the result of a config with other settings.
    """
    is_text = isinstance(config, str)
    parsed = Config.fromstring(config, '.py') if is_text else config
    digest = digest_of(parsed)
    result = folder / 'result.json'
    if result.exists():
        found = json.loads(result.read_text())
        if found.pop('config', None) != digest:
            raise LocalLearningError(
                f'{folder} holds the result of a config with other settings: move it away, or give '
                'another --out'
            )
        return found
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.py').write_text(config if is_text else config.pretty_text)
    work_dir, log = folder / f'work_dir_{os.getpid()}_{time.time():.0f}', folder / 'train.log'
    start = time.perf_counter()
    code = run_tool(
        ROOT / 'tools/train.py',
        [str(folder / 'config.py'), '--work-dir', str(work_dir)],
        log,
        threads,
        parsed.get('default_scope') or '',
    )
    last = log.read_text().strip().rpartition('\n')[2].rpartition('error: ')[2]
    if code and not (may_diverge and _DIVERGED.search(last)):
        raise LocalLearningError(f'{last} (the training of {log})')
    found = dict(diverged=True) if code else figures_of(work_dir)
    if may_diverge and not code and diverged(work_dir):
        found = dict(found, diverged=True)
    figures = dict(found, minutes=(time.perf_counter() - start) / 60)
    # Appears whole or not at all.
    (folder / 'result.part').write_text(json.dumps(dict(figures, config=digest)))
    (folder / 'result.part').rename(result)
    return figures


def run_tool(tool: Path, arguments: List[str], log: Path, threads: int, scope: str) -> int:
    """Run a tool in a process of its own, forked from one that has imported the packages.

    Imports take longer than a short training. Where there is a GPU, each process imports by itself:
    what OpenMMLab's packages ask CUDA for when they are imported can't be forked.

    Args:
        tool: The script.
        arguments: Of its command line.
        log: The file for all that it prints.
        threads: CPU threads.
        scope: The OpenMMLab package that is used, if it is one.

    Returns:
        The exit status.
    """
    method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
    context = multiprocessing.get_context(method)
    packages = [f'{scope}.{part}' for part in ('datasets', 'models') if scope]
    # Counts before the first tool alone: later ones are forked from the same process.
    context.set_forkserver_preload([] if torch.cuda.is_available() else [*TOOL_IMPORTS, *packages])
    log.write_text('')
    process = context.Process(target=_tool_process, args=(str(tool), arguments, str(log), threads))
    with _ONE_AT_A_TIME:
        process.start()
    wait([process.sentinel])
    with _ONE_AT_A_TIME:
        process.join()
    return process.exitcode or 0


def _tool_process(tool: str, arguments: List[str], log: str, threads: int) -> None:
    with open(log, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ['OMP_NUM_THREADS'] = str(threads)
    torch.set_num_threads(threads)
    sys.argv = [tool, *arguments]
    sys.path.insert(0, str(Path(tool).parent))
    runpy.run_path(tool, run_name='__main__')


def scalars(work_dir: Path) -> List[dict]:
    """What MMEngine logged, a dict per line of its log.

    Args:
        work_dir: Of one training.
    """
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def diverged(work_dir: Path) -> bool:
    """Whether a loss was no number, which stock training goes on with.

    Args:
        work_dir: Of one training.
    """
    return not all(math.isfinite(line['loss']) for line in scalars(work_dir) if 'loss' in line)


def accuracy_and_time(work_dir: Path) -> dict:
    """What a classifier reached in the end, and the median time of its epochs.

    Args:
        work_dir: Of one training that logged every iteration.
    """
    logged = scalars(work_dir)
    steps = [line for line in logged if 'lr' in line]
    epochs = [
        sum(line['time'] for line in steps if line['epoch'] == epoch)
        for epoch in sorted({line['epoch'] for line in steps})
    ]
    accuracy = [line['accuracy/top1'] for line in logged if 'accuracy/top1' in line]
    return dict(accuracy=accuracy[-1], seconds_per_epoch=statistics.median(epochs))


def run_all(
    variants: Sequence[str],
    seeds: Sequence[int],
    one: Callable[[str, int], dict],
    say: Callable[[dict], str],
    jobs: int,
    console: Console,
    of: str = 'seed',
) -> Results:
    """Train every variant with every seed, all variants of a seed first.

    Args:
        variants: Names.
        seeds: Seeds.
        one: Trains a variant with a seed.
        say: A result in some words.
        jobs: Trainings at a time.
        console: Where progress goes.
        of: What a seed is, if it is something else.
    """
    results: Results = {name: {} for name in variants}
    columns = (TextColumn('trainings'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task('', total=len(variants) * len(seeds))

        def run(name: str, seed: int) -> None:
            results[name][seed] = one(name, seed)
            console.print(f'{name}, {of} {seed}: {say(results[name][seed])}')
            progress.advance(task)

        runs = [pool.submit(run, name, seed) for seed in seeds for name in variants]
        try:
            for each in runs:
                each.result()
        except BaseException:
            # The others would go on for hours before anyone heard of it.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation, as text."""
    mean = f'{statistics.mean(values):.{digits}f}'
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.{digits}f}'


def markdown(rows: List[List[str]]) -> str:
    """A table as Markdown."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|' + '---|' * len(rows[0]))
    return '\n'.join(lines) + '\n'


def file_name(text: str) -> str:
    """A name that can be a file's."""
    return re.sub(r'\W+', '_', text)
