"""Which configs of an OpenMMLab collection train by local learning.

    python benchmarks/sweep_collection.py --per-folder 1     # some of each kind
    python benchmarks/sweep_collection.py                    # all: hours on a CPU
    python benchmarks/sweep_collection.py --only 'retinanet/*' 'fcos/*'

Makes each config's model small, trains it for one step on random images in local modules, and
checks that modules are isolated and that the exported checkpoint is one of the stock config. Each
config has a process of its own; of those with the same model, whatever trains it, the first stands
for all. Goes on where it stopped: what lies in ``--out``/verdicts.jsonl is not tried again. Ends
with ``--out``/table.md.
"""

import argparse
import importlib
import json
import multiprocessing
import signal
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Dict

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tried_configs import (
    Verdict,
    collection,
    compatibility_table,
    sample,
    small_digest,
    try_config,
)

from fba_mm import command_line
from fba_mm.config import load_config, type_name
from fba_mm.errors import LocalLearningError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Which configs train by local learning')
    parser.add_argument('--package', default='mmdet', help='whose collection')
    parser.add_argument(
        '--only', nargs='+', default=['*'], metavar='PATTERN', help='names of configs'
    )
    parser.add_argument(
        '--per-folder', type=int, help='try so many of each backbone in a folder; default: all'
    )
    parser.add_argument('--local', type=command_line.module_count, default=4, metavar='K')
    parser.add_argument(
        '--sizes',
        type=int,
        nargs='+',
        default=[128, 320],
        help='height and width of the images; the next if models need larger ones',
    )
    parser.add_argument('--timeout', type=int, default=300, help='seconds for one config')
    parser.add_argument(
        '--out',
        type=Path,
        help='verdicts that are there already are kept '
        '(default: work_dirs/sweep_collection/<package>_local<K>)',
    )
    return parser.parse_args()


def backbone_of(path: Path) -> str:
    """The type of a config's backbone, or what went wrong."""
    try:
        model = Config.fromfile(str(path), import_custom_modules=False).get('model') or {}
        backbone = model.get('backbone') or {}
        return type_name(backbone.get('type')) if backbone else ''
    except Exception as error:  # Configs are code.
        return type(error).__name__


def judge(
    args: argparse.Namespace, name: str, path: Path, tried: Dict[str, Verdict], out: Path
) -> None:
    """Try one config, in a process of its own, and write down the verdict."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        cfg = load_config(str(path))
    except Exception as error:
        verdict = Verdict(name, outcome='not tried', reason=' '.join(str(error).split())[:160])
    else:
        digest = small_digest(cfg) if cfg.get('model') else ''
        verdict = (
            replace(tried[digest], name=name)
            if digest in tried
            else replace(try_config(name, cfg, args.local, args.sizes), digest=digest)
        )
    out.write_text(json.dumps(verdict.as_dict()))


def in_a_process(
    args: argparse.Namespace, name: str, path: Path, tried: Dict[str, Verdict]
) -> Verdict:
    """The verdict on a config, whatever it does to the process."""
    part = args.out / 'verdict.part'
    part.unlink(missing_ok=True)
    process = multiprocessing.get_context('fork').Process(
        target=judge, args=(args, name, path, tried, part)
    )
    process.start()
    process.join(args.timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return Verdict(
            name,
            backbone=backbone_of(path),
            outcome='not tried',
            reason=f'it took more than {args.timeout} s',
        )
    if not part.exists():
        return Verdict(
            name,
            backbone=backbone_of(path),
            outcome='fails',
            reason=f'the process ended with {process.exitcode}',
        )
    return Verdict(**json.loads(part.read_text()))


def recorded(record: Path) -> Dict[str, Verdict]:
    """The verdicts of earlier runs, by name; a line that was cut off is dropped from the file."""
    known: Dict[str, Verdict] = {}
    for line in record.read_text().splitlines() if record.exists() else []:
        try:
            verdict = Verdict(**json.loads(line))
        except ValueError:
            continue
        known[verdict.name] = verdict
    record.write_text(''.join(f'{json.dumps(verdict.as_dict())}\n' for verdict in known.values()))
    return known


def main() -> None:
    args = parse_args()
    if args.out is None:
        args.out = Path(f'work_dirs/sweep_collection/{args.package}_local{args.local}')
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    MMLogger.get_current_instance().setLevel('ERROR')
    configs = {
        name: path
        for name, path in collection(args.package).items()
        if any(fnmatch(name, pattern) for pattern in args.only)
    }
    if not configs:
        raise LocalLearningError(
            f"none of {args.package}'s configs matches --only {' '.join(args.only)}: names are "
            "whole, as in --only 'retinanet/*' '*swin*'"
        )
    if args.per_folder is not None:
        configs = dict(sample(configs, backbone_of, args.per_folder))
    # Once, for all processes: it takes longer than a step.
    importlib.import_module(f'{args.package}.models')
    record = args.out / 'verdicts.jsonl'
    known = recorded(record)
    tried = {verdict.digest: verdict for verdict in known.values() if verdict.digest}
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress, record.open('a') as file:
        task = progress.add_task('configs', total=len(configs))
        for name, path in configs.items():
            if name not in known:
                known[name] = verdict = in_a_process(args, name, path, tried)
                if verdict.digest:
                    tried[verdict.digest] = verdict
                file.write(json.dumps(verdict.as_dict()) + '\n')
                file.flush()
                if verdict.outcome != 'trains':
                    console.print(f'{name}: {verdict.outcome}: {verdict.reason}', markup=False)
            progress.advance(task)
    table = compatibility_table([known[name] for name in configs])
    (args.out / 'table.md').write_text(table)
    console.print(table, markup=False)


if __name__ == '__main__':
    command_line.run(main)
