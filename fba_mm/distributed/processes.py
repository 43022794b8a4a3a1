"""Several processes: how they start, and how they fail together."""

import datetime
import hashlib
import json
import os
import re
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, init_dist, is_distributed

from ..compat.torch_versions import DistError
from ..errors import LocalLearningError

# Where each launcher says which process this is, how many there are, and its number on a machine.
_PLACES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_STARTED_BY = dict(
    pytorch='tools/dist_train.sh or torchrun', slurm='tools/slurm_train.sh or srun', mpi='mpirun'
)


def init_processes(launcher: str, dist_cfg: Optional[dict] = None) -> None:
    """Join the processes that a launcher has started, on GPUs or on CPUs alone.

    Args:
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'``; ``'none'`` does nothing.
        dist_cfg: The config's ``env_cfg.dist_cfg``. Without GPUs, ``nccl`` becomes ``gloo``.

    Raises:
        LocalLearningError: The launcher has not started this process, there are fewer GPUs than
            processes, or it is not known where process 0 is.
    """
    if launcher == 'none' or is_distributed():
        return
    absent = [name for name in _PLACES[launcher] if name not in os.environ]
    if absent:
        raise LocalLearningError(
            f'--launcher {launcher}, but {absent[0]} is not set: start it with '
            f'{_STARTED_BY[launcher]}, or leave --launcher out'
        )
    rank, world_size, local_rank = (int(os.environ[name]) for name in _PLACES[launcher])
    settings = dict(dict(backend='nccl'), **(dist_cfg or {}))
    if get_device() != 'cpu':
        if get_device() == 'cuda' and local_rank >= torch.cuda.device_count():
            raise LocalLearningError(
                f'process {local_rank + 1} on a machine with {torch.cuda.device_count()} GPUs: '
                'start as many processes as there are GPUs'
            )
        # MMEngine's own way, which also knows the accelerators of other makers.
        init_dist(launcher, **settings)
        return
    # MMEngine's way wants a GPU to bind to.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank))
    here = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', world_size))
    if 'MASTER_ADDR' not in os.environ and (
        here < world_size or os.environ.get('SLURM_NNODES', '1') != '1'
    ):
        raise LocalLearningError(
            f'--launcher {launcher} on several machines: set the environment variable MASTER_ADDR '
            'to the name of the one with process 0'
        )
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', str(settings.get('port') or 29500))
    limits = {}
    if settings.get('timeout') is not None:
        limits['timeout'] = datetime.timedelta(seconds=settings['timeout'])
    dist.init_process_group(
        'gloo' if settings['backend'] == 'nccl' else settings['backend'], **limits
    )


@contextmanager
def joint_errors() -> Iterator[None]:
    """What one process finds wrong within this context, all report, and none waits for it.

    There must be no communication within.

    Raises:
        LocalLearningError: In every process, if there was one in any.
    """
    own: Optional[LocalLearningError] = None
    try:
        yield
    except LocalLearningError as error:
        own = error
    if not is_distributed():
        if own is not None:
            raise own
        return
    found = _gather(None if own is None else str(own))
    ranks = [rank for rank, message in enumerate(found) if message is not None]
    if own is not None and len(set(found)) == 1:
        raise own
    if ranks:
        raise LocalLearningError(f'process {ranks[0]} of {len(found)}: {found[ranks[0]]}') from own


@contextmanager
def lost_processes() -> Iterator[None]:
    """Say it in one line when another process ends, or stops answering, within this context.

    Raises:
        LocalLearningError: What torch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        if not is_distributed() or not (isinstance(error, DistError) or 'gloo' in reason):
            raise
        # Gloo says where in its source first, and gives advice last.
        reason = re.sub(r'^\[[^]]*\] ', '', reason).split('. ')[0]
        raise LocalLearningError(
            f'another process of this job was lost or does not answer ({reason[:160]}): look for '
            'its own last words, and go on with --resume'
        ) from error


def check_agreement(what: str, values: Dict[str, Any]) -> None:
    """Refuse processes that are about to do different things.

    Args:
        what: What is compared, as in ``'the config'``.
        values: Its entries by name; compared as text.

    Raises:
        LocalLearningError: In every process, if any differs from the first; names an entry.
    """
    if get_world_size() == 1:
        return
    texts = {name: str(value) for name, value in values.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    digests = _gather(digest)
    if len(set(digests)) == 1:
        return
    first = from_first_process(texts)
    differing = next(
        (name for name in {**first, **texts} if first.get(name) != texts.get(name)), None
    )
    rank = next(i for i, other in enumerate(digests) if other != digests[0])
    # None stands for process 0 and those that agree with it.
    name, value = next(
        report for report in _gather((differing, texts.get(differing))) if report[0] is not None
    )
    raise LocalLearningError(
        f'process {rank} has another {what} than process 0, {name}={_short(value)} instead of '
        f'{_short(first.get(name))}: start all processes with the same one'
    )


def check_equal_data(runner) -> None:
    """Refuse processes that see different data behind equal configs, as copies on two machines do.

    One with fewer batches would end its epoch early, and the others would wait for it.

    Args:
        runner: MMEngine's runner, with its loops built.

    Raises:
        LocalLearningError: In every process.
    """
    if get_world_size() == 1:
        return
    sizes = {}
    for split, loop in (('train', runner.train_loop), ('val', runner.val_loop)):
        dataloader = getattr(loop, 'dataloader', None)
        for what, sized in (
            ('images', getattr(dataloader, 'dataset', None)),
            ('batches', dataloader),
        ):
            if hasattr(sized, '__len__'):
                sizes[f'number of {what} in {split}_dataloader'] = len(sized)
    check_agreement('data set', sizes)


def from_first_process(value: Any) -> Any:
    """What process 0 was given here; in one process, the value itself.

    Args:
        value: Anything that can be pickled.
    """
    if get_world_size() == 1:
        return value
    values = [value if get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


def _gather(value: Any) -> List[Any]:
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def _short(value: Optional[str]) -> str:
    if value is None:
        return 'nothing'
    return value if len(value) <= 60 else f'{value[:57]}...'
