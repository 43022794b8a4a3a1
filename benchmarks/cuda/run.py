"""What a GPU says of local learning, most telling first, in the minutes that there are.

    python benchmarks/cuda/run.py --minutes 9 --out DIR

Runs the tests marked ``cuda``, then measures memory against its prediction, time by turns, the
largest batches and images, and trains. Each row has a time limit of its own; one that fails is
written down and the next one runs. What is in ``DIR/results.jsonl`` is not measured again, so that
another call goes on where this one ended; rows that failed are tried again last. ``--device cpu
--small`` tries all of it out without a GPU. Started by ``torchrun --nproc_per_node N``, it measures
several processes instead. See README.md beside this file.
"""

import argparse
import os
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from journal import Journal, supervise_all, work  # noqa: E402

# As many of each kind come first; the rest follows in the same order of kinds.
FIRST = dict(marked_tests=2, memory=6, step_time=7, limits=2, training=1)


def place_of(args: argparse.Namespace) -> dict:
    """What results depend on besides their row."""
    import torch

    card = torch.cuda.get_device_name() if args.device == 'cuda' else 'CPU'
    return dict(device=args.device, card=card, torch=torch.__version__, small=args.small)


def work_through(args: argparse.Namespace) -> None:
    """Be one of the processes that measure."""
    import fba_mm  # noqa: F401, before what depends on it

    # isort: split
    import limits
    import marked_tests
    import memory
    import step_time
    import training

    place = place_of(args)
    rows = []
    if 'device' in args.worker:
        kinds = [marked_tests, memory, step_time, limits, training]
        found = {kind.__name__: kind.rows(place) for kind in kinds}
        rows += [row for name, some in found.items() for row in some[: FIRST[name]]]
        rows += [row for name, some in found.items() for row in some[FIRST[name] :]]
    if 'host' in args.worker:
        rows += memory.predictions(place)
    rows = [row for row in rows if not args.only or row.name.startswith(tuple(args.only))]
    work(rows, Journal(args.out / 'results.jsonl'), args.since, args.deadline)


def main() -> None:
    parser = argparse.ArgumentParser(description='Measurements on a GPU')
    parser.add_argument('--minutes', type=float, default=9, help='the time that there is')
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--small', action='store_true', help='tiny networks, to try it out')
    parser.add_argument('--only', nargs='+', help='beginnings of the names of rows')
    parser.add_argument('--worker', nargs='+', choices=['device', 'host'], help=argparse.SUPPRESS)
    parser.add_argument('--since', type=float, help=argparse.SUPPRESS)
    parser.add_argument('--deadline', type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    start = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        work_through(args)
        return
    import torch

    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no CUDA device: --device cpu --small tries the rows out without')
    # The report at the end takes some seconds.
    deadline = start + 60 * args.minutes - min(10, 6 * args.minutes)
    span = ['--since', str(start), '--deadline', str(deadline)]
    command = [sys.executable, __file__, *sys.argv[1:], *span, '--worker']
    # Predictions are computed on the host: beside the device's rows, unless they are the same.
    workers = [['device'], ['host']] if args.device == 'cuda' else [['device', 'host']]
    os.environ['PYTHONUNBUFFERED'] = '1'
    os.environ['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(FOLDER.parents[1]), os.environ.get('PYTHONPATH')])
    )
    journal = Journal(args.out / 'results.jsonl')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        import fba_mm  # noqa: F401, before what depends on it

        # isort: split
        import processes

        processes.work_in_processes(place_of(args), journal, deadline)
        if int(os.environ['RANK']) > 0:
            return
    else:
        supervise_all(
            [command + worker for worker in workers], journal, deadline, args.out / 'log.txt'
        )

    import report

    print(report.write(journal, args.out))


if __name__ == '__main__':
    main()
