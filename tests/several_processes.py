"""Functions run in several processes that know of each other through gloo.

The processes are forked from a server that has imported the packages and nothing more: a process
costs milliseconds then, and knows nothing of the test session's threads.
"""

import gc
import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Callable, List

import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

import fba_mm  # noqa: F401

# isort: split
import mmdet.models  # noqa: F401, after fba_mm

SECONDS = 300
_CONTEXT = multiprocessing.get_context('forkserver')


def run_in_processes(count: int, function: Callable, *args: Any, **kwargs: Any) -> List[Any]:
    """Run ``function(rank, *args, **kwargs)`` in each of several processes.

    Args:
        count: Number of processes.
        function: Of a module's top level.
        *args: Can be pickled.
        **kwargs: Can be pickled.

    Returns:
        What the function returned, or the exception that it raised, or the exit code of a process
        that was killed, by process.
    """
    return _outcomes(count, function, args, kwargs, connect=count > 1)


def launch(count: int, function: Callable, *args: Any, **kwargs: Any) -> List[Any]:
    """As :func:`run_in_processes`, with processes as torchrun starts them.

    They find in their environment what they need to find each other.
    """
    return _outcomes(count, function, args, kwargs, connect=False)


def _serve() -> None:
    """Have processes forked from a server with this module: benchmarks start one without."""
    server = forkserver._forkserver  # There is one in a process, and no public way to end it.
    if server._preload_modules != [__name__]:
        server._stop()
        _CONTEXT.set_forkserver_preload([__name__])


def _outcomes(count: int, function: Callable, args: tuple, kwargs: dict, connect: bool) -> list:
    _serve()
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [Path(folder) / f'outcome_{rank}' for rank in range(count)]
        processes = [
            _CONTEXT.Process(
                target=_run, args=(function, rank, count, folder, args, kwargs, port, connect)
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for rank in hanging:
            processes[rank].kill()
        assert not hanging, f'processes {hanging} did not end'
        return [
            pickle.loads(path.read_bytes()) if path.exists() else process.exitcode
            for path, process in zip(outcomes, processes)
        ]


def _run(
    function: Callable,
    rank: int,
    count: int,
    folder: str,
    args: tuple,
    kwargs: dict,
    port: int,
    connect: bool,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    gc.freeze()  # No looking for garbage in what was imported, whose memory is shared.
    MMLogger.get_current_instance().setLevel('WARNING')
    try:
        if connect:
            dist.init_process_group(
                'gloo',
                init_method=f'file://{folder}/store',
                rank=rank,
                world_size=count,
                timeout=timedelta(seconds=SECONDS / 2),
            )
        with DefaultScope.overwrite_default_scope('mmdet'):
            outcome = function(rank, *args, **kwargs)
    except BaseException as error:
        traceback.print_exc()
        outcome = error
    content = pickle.dumps(outcome)
    written = Path(folder) / f'outcome_{rank}'
    written.with_suffix('.tmp').write_bytes(content)
    os.replace(written.with_suffix('.tmp'), written)
