"""Mutated command lines, configs and checkpoints of ``tools/test.py`` and ``tools/export.py``.

Each does what it is for, or is refused in one readable line, and no file that was there changes.

python -m tests.command_fuzz --count 300 --seed 0
"""

import argparse
import contextlib
import copy
import io
import os
import random
import tempfile
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch
from mmengine.config import Config

from fba_mm.preflight.building import build_model

from .config_fuzz import VALUES, base_configs, mutate, places
from .test_tools.in_process import run_tool, without_niceties

TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
# What stands where a path, a name or a number is expected.
WORDS = (
    '',
    'x',
    '.',
    '/proc',
    '-1',
    'nan',
    '--',
    'nowhere/x.pth',
    '/proc/version',
    'mmdet::x.py',
    'nothing::x.py',
    'http://127.0.0.1:1/x.pth',
    's3://x/y.pth',
    'é',
    'x' * 300,
)
OPTIONS: Tuple[Tuple[str, ...], ...] = (
    ('--out', 'new.pkl'),
    ('--out', 'new.txt'),
    ('--out', '/proc/new.pkl'),
    ('--out', ''),
    ('--show-dir', 'painted'),
    ('--show-dir', '/proc/painted'),
    ('--tta',),
    ('--overwrite',),
    ('--trust-checkpoint',),
    ('--launcher', 'pytorch'),
    ('--launcher', 'slurm'),
    ('--launcher', 'x'),
    ('--local-rank', 'x'),
    ('--wait-time', 'x'),
    ('--work-dir', ''),
    ('--work-dir', '/proc/x'),
    ('--out-config', 'new.txt'),
    ('--out-config', '/proc/new.py'),
    ('--no-such',),
    ('--cfg-options',),
    ('--cfg-options', 'x'),
    ('--cfg-options', 'x=1'),
    ('--cfg-options', 'model.backbone.depth=34'),
    ('--cfg-options', 'test_dataloader=None'),
    ('--cfg-options', 'test_evaluator=None'),
)


class Case(NamedTuple):
    """A good call of each tool: paths of a config and a checkpoint."""

    kind: str
    cfg: Config
    config: Path
    checkpoint: Path


def good_cases(folder: Path) -> List[Case]:
    """Small configs of all tasks, stock and local, with checkpoints of untrained models."""
    found = []
    for kind, cfg in base_configs(folder).items():
        cfg = copy.deepcopy(cfg)
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'test_{part}'] = copy.deepcopy(cfg[f'val_{part}'])
            cfg.pop(f'val_{part}')
        # mmagic has a loop and an evaluator of its own.
        cfg.test_cfg.type = 'TestLoop'
        if kind[0] == 'super_resolution':
            cfg.test_cfg.type = 'MultiTestLoop'
            cfg.test_evaluator = dict(type='Evaluator', metrics=cfg.test_evaluator)
        for part in TRAINING:
            cfg.pop(part)
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'EMAHook']
        name = '_'.join(kind)
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        write(cfg, config)
        torch.save(dict(state_dict=build_model(cfg).state_dict(), meta=dict(epoch=1)), checkpoint)
        found.append(Case(name, cfg, config, checkpoint))
    return found


def write(cfg: Config, path: Path) -> None:
    """Write a config file, also one with numbers that Python has no words for."""
    with without_niceties():
        text = cfg.pretty_text
    path.write_text(f"nan, inf = float('nan'), float('inf')\n{text}" if 'nan' in text else text)


def spoil_config(case: Case, folder: Path, rng: random.Random) -> Tuple[Path, str]:
    """Write the case's config with one setting changed."""
    cfg, change = mutate(case.cfg, rng)
    path = folder / 'mutated.py'
    write(cfg, path)
    return path, change


def spoil_checkpoint(case: Case, folder: Path, rng: random.Random) -> Tuple[Path, str]:
    """Write the case's checkpoint with one entry changed."""
    content = torch.load(case.checkpoint, weights_only=True)
    state = content['state_dict']
    key = rng.choice(sorted(state))
    kind = rng.choice(('removed', 'renamed', 'reshaped', 'nan', 'value', 'bare', 'meta', 'cut'))
    if kind == 'removed':
        del state[key]
    elif kind == 'renamed':
        state[f'{key}x'] = state.pop(key)
    elif kind == 'reshaped':
        state[key] = torch.zeros(3, 1, 2)
    elif kind == 'nan' and state[key].is_floating_point():
        state[key] = state[key] * float('nan')
    elif kind == 'value':
        key = rng.choice(('state_dict', 'meta', key))
        (content if key in content else state)[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 'bare':
        content = state
    elif kind == 'meta':
        content['meta'] = rng.choice(({}, dict(dataset_meta=1), dict(cfg='x'), dict(epoch='x')))
    path = folder / 'mutated.pth'
    torch.save(content, path)
    if kind == 'cut':
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return path, f'checkpoint: {key} {kind}'


def spoil_command(line: List[str], case: Case, rng: random.Random) -> Tuple[List[str], str]:
    """Change one word of a command line."""
    line = list(line)
    kind = rng.choice(('replace', 'replace', 'drop', 'swap', 'double', 'option', 'option', 'set'))
    i = rng.randrange(len(line))
    if kind == 'replace':
        line[i] = rng.choice((*WORDS, str(case.config), str(case.checkpoint)))
    elif kind == 'drop':
        del line[i]
    elif kind == 'swap':
        j = rng.randrange(len(line))
        line[i], line[j] = line[j], line[i]
    elif kind == 'double':
        line.append(line[i])
    elif kind == 'option':
        line += rng.choice(OPTIONS)
    else:
        path = rng.choice(list(places(case.cfg.to_dict())))
        line += ['--cfg-options', f'{".".join(map(str, path))}={rng.choice(VALUES)!r}']
    return line, f'{kind}: {" ".join(line)}'[:300]


def mutations(
    cases: List[Case], folder: Path, count: int, seed: int
) -> Iterator[Tuple[str, str, List[str]]]:
    """Tools, what was changed, and their arguments.

    Args:
        cases: From :func:`good_cases`.
        folder: What is changed is written there, over what was before.
        count: How many.
        seed: Of the choices.
    """
    rng = random.Random(seed)
    for i in range(count):
        tool = ('test', 'export')[i % 2]
        # Stock configs have nothing to export.
        fit = cases if tool == 'test' else [one for one in cases if one.kind.endswith('local')]
        case = fit[i // 2 % len(fit)]
        config, checkpoint, change = case.config, case.checkpoint, ''
        kind = rng.choice(('config', 'checkpoint', 'command', 'command'))
        if kind == 'config':
            config, change = spoil_config(case, folder, rng)
        elif kind == 'checkpoint':
            checkpoint, change = spoil_checkpoint(case, folder, rng)
        outs = {'test': ['--work-dir', 'work'], 'export': ['out.pth', '--out-config', 'out.py']}
        line = [str(config), str(checkpoint), *outs[tool]]
        if kind == 'command':
            line, change = spoil_command(line, case, rng)
        yield tool, f'{case.kind}: {change}', line


def run(tool: str, line: List[str], folder: Path, kept: Dict[Path, bytes]) -> str:
    """What became of a command: ``'ran'``, ``'refused: ...'``, ``'usage'``, or what is wrong.

    Args:
        tool: Its name.
        line: Its arguments.
        folder: An empty one, where it is run.
        kept: Files that have to stay as they are, with what is in them.
    """
    said, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run_tool(tool, *line).status
    except BaseException:
        return f'TRACEBACK {traceback.format_exc()}'
    finally:
        os.chdir(before)
    text = said.getvalue()
    changed = [path.name for path, content in kept.items() if path.read_bytes() != content]
    errors = [one for one in text.splitlines() if one.startswith('error: ')]
    if changed:
        return f'CHANGED {changed}'
    if 'Traceback (' in text:
        return f'TRACEBACK {text}'
    if status == 0:
        return 'ran'
    if status == 2 and 'usage: ' in text:
        return 'usage'
    if status != 1 or len(errors) != 1 or not text.rstrip().endswith(errors[0]):
        return f'NO LINE {status} {text}'
    return f'refused: {errors[0]}' if len(errors[0]) < 900 else f'LONG {errors[0]}'


def results(count: int, seed: int, report: Callable[[str], Any] = str) -> Dict[str, str]:
    """Make mutations and run each.

    Args:
        count: How many.
        seed: Of the choices.
        report: Called with a line for each.
    """
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cases = good_cases(root)
        kept = {path: path.read_bytes() for case in cases for path in case[2:]}
        mutated = root / 'mutated'
        mutated.mkdir()
        for i, (tool, change, line) in enumerate(mutations(cases, mutated, count, seed)):
            folder = root / f'run{i}'
            folder.mkdir()
            result = run(tool, line, folder, kept)
            for path, content in kept.items():
                path.write_bytes(content)
            found[f'{i} {tool} {change}'] = result
            report(f'{i} {tool} {change}: {result}')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--verbose', action='store_true')
    args = parser.parse_args()

    def report(line: str) -> None:
        if args.verbose or any(
            f': {word} ' in line for word in ('TRACEBACK', 'NO LINE', 'LONG', 'CHANGED')
        ):
            print(line, flush=True)

    kinds = [
        one.partition(':')[0].split()[0] for one in results(args.count, args.seed, report).values()
    ]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))})


if __name__ == '__main__':
    main()
