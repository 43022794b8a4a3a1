"""A training profile as tables, as JSON and as a picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Union

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .memory import StepMemory
from .memory_plot import COLOURS, draw_memory
from .training_profile import MIB, VariantProfile

# Bytes by role, as VariantProfile has them → the head of their column.
_AT_PEAK = {
    'activations': 'activations',
    'gradients': 'gradients',
    'auxiliary': 'auxiliary\ngradients',
    'bank': 'bank',
    'parameters': 'parameters\nmade',
    'optimizer_state': 'state\nmade',
    'allocator': 'allocator, difference',
}
_RESIDENT = {
    'parameters': 'parameters',
    'optimizer_state': 'optimizer\nstate',
    'auxiliary': 'auxiliary\nnetworks',
}


def print_profile(
    console: Console, profiles: List[VariantProfile], title: str, details: bool = False
) -> None:
    """Print a profile as a table of memory and time.

    Args:
        console: Where to.
        profiles: From :func:`profile_training`.
        title: What was profiled.
        details: Also print tables of what peaks consist of, and of the peaks of local modules.
    """
    console.print(_summary_table(profiles, title))
    if details:
        console.print(_split_table(profiles))
        for profile in profiles:
            if profile.modules:
                console.print(_module_table(profile))
    if any(profile.num_modules == 1 for profile in profiles):
        console.print('K = 1 is plain back-propagation: where it fits, you need no local learning.')


def _summary_table(profiles: List[VariantProfile], title: str) -> Table:
    timed = any(profile.seconds for profile in profiles)
    table = _table(
        title, 'training', 'exact', 'peak\nMiB', 'with parameters\nand state', 'peak\n/ BP'
    )
    for column in ('time\ns', 'time\n/ BP') if timed else ():
        table.add_column(column, justify='right')
    table.add_column('peak during')
    for profile in profiles:
        ratio = ratios(profile, profiles)
        row = [
            '' if profile.kind == 'forward' else 'yes' if profile.is_exact else 'no',
            f'{profile.memory.peak_bytes / MIB:,.1f}',
            f'{profile.total / MIB:,.1f}',
            _number(ratio['peak_to_bp']),
        ]
        if timed:
            row += [f'{profile.median_seconds:.3f}', _number(ratio['time_to_bp'])]
        table.add_row(profile.name, *row, profile.peak_phase)
    return table


def _split_table(profiles: List[VariantProfile]) -> Table:
    # Columns of zeros would only have to be read.
    shown = [role for role in _AT_PEAK if any(profile.at_peak.get(role) for profile in profiles)]
    below = [role for role in _RESIDENT if any(profile.resident[role] for profile in profiles)]
    table = _table(
        'At the peak, MiB (activations with temporary tensors, parameters with buffers)',
        'training',
        *(_AT_PEAK[role] for role in shown),
        '= peak',
        *(_RESIDENT[role] for role in below),
        '= all',
    )
    for profile in profiles:
        peak = profile.memory.peak_bytes
        numbers = [
            *(profile.at_peak.get(role, 0) for role in shown),
            peak,
            *(profile.resident[role] for role in below),
            peak + sum(profile.resident.values()),
        ]
        table.add_row(profile.name, *(f'{nbytes / MIB:.1f}' for nbytes in numbers))
    return table


def _module_table(profile: VariantProfile) -> Table:
    table = _table(f'{profile.name}: peak of each module', 'module', 'peak\nMiB')
    table.add_column('segments')
    for number, (segments, peak) in enumerate(profile.modules, 1):
        if number == len(profile.modules):
            segments += ', neck and head'
        table.add_row(str(number), f'{peak / MIB:.1f}', segments)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify='right')
    return table


def _number(value: Optional[float]) -> str:
    return '' if value is None else f'{value:.2f}'


def ratios(profile: VariantProfile, profiles: List[VariantProfile]) -> Dict[str, Optional[float]]:
    """Peak and time of one way to train over those of back-propagation and of checkpointing.

    Args:
        profile: The one.
        profiles: All that were measured with it.

    Returns:
        ``peak_to_bp``, ``time_to_bp``, ``peak_to_checkpointing``, ``time_to_checkpointing``; None
        for what wasn't measured.
    """
    found: Dict[str, Optional[float]] = {}
    for kind in ('bp', 'checkpointing'):
        base = next((other for other in profiles if other.kind == kind), None)
        peak = base and base.memory.peak_bytes
        seconds = base and base.median_seconds
        found[f'peak_to_{kind}'] = profile.memory.peak_bytes / peak if peak else None
        own = profile.median_seconds
        found[f'time_to_{kind}'] = own / seconds if own and seconds else None
    return found


def save_profile(
    profiles: List[VariantProfile], folder: Union[str, Path], title: str, setting: dict
) -> None:
    """Write ``profile.json`` and ``memory.png``.

    Args:
        profiles: From :func:`profile_training`.
        folder: Where to; made if missing.
        title: Of the picture.
        setting: What was profiled and how: config, shape, device, ...
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = dict(
        setting,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        variants=[_figures(profile, profiles) for profile in profiles],
    )
    (folder / 'profile.json').write_text(json.dumps(figures, indent=2) + '\n')
    # More lines than these can't be told apart.
    drawn = sorted(profiles, key=lambda one: one.kind not in ('local', 'bp'))[: len(COLOURS)]
    draw_memory(
        {profile.name: _drawn(profile) for profile in profiles if profile in drawn},
        folder / 'memory.png',
        title=title,
        y_label='memory on top of the model [MiB]',
    )


def _figures(profile: VariantProfile, profiles: List[VariantProfile]) -> dict:
    return dict(
        name=profile.name,
        kind=profile.kind,
        peak_bytes=profile.memory.peak_bytes,
        peak_during=profile.peak_phase,
        at_peak=profile.at_peak,
        resident=profile.resident,
        modules=[dict(segments=segments, peak_bytes=peak) for segments, peak in profile.modules],
        phases=[dict(name=name, peak_bytes=peak) for name, peak in profile.memory.phases],
        seconds=profile.seconds,
        median_seconds=profile.median_seconds,
        **ratios(profile, profiles),
    )


def _drawn(profile: VariantProfile) -> StepMemory:
    """Its memory with the marks that help: where local modules begin."""
    marks = [
        (name, seconds)
        for name, seconds in profile.memory.marks
        if name.startswith('module ') and not name.endswith('backward')
    ]
    return replace(profile.memory, marks=marks)
