"""Tables and pictures of what a journal holds."""

from pathlib import Path
from typing import Callable, Dict, List, Optional

from journal import Journal


def write(journal: Journal, out: Path) -> str:
    """Write ``table.md`` and pictures; returns the table.

    Args:
        journal: What was measured.
        out: The folder.
    """
    found: Dict[str, Dict[str, dict]] = {}
    failed, places = [], {}
    for name, lines in journal.ends().items():
        kind, _, what = name.partition('/')
        line = lines[-1]
        if 'error' in line:
            failed.append(f'- {name}: {line["error"].splitlines()[0][:200]}')
            continue
        found.setdefault(kind, {})[what] = line['found']
        if 'card' in line['place']:
            places[f'{line["place"]["card"]}, torch {line["place"]["torch"]}'] = None
    parts = [', '.join(places)]
    for kind, section in SECTIONS.items():
        if kind in found:
            parts.append(_whole(section, found[kind], found))
    for kind, draw in PICTURES.items():
        if kind in found:
            parts.append(_whole(draw, found[kind], found, out / f'{kind}.png'))
    if failed:
        parts.append('\n'.join(['Failed:', *failed]))
    text = '\n\n'.join(part for part in parts if part) + '\n'
    (out / 'table.md').write_text(text)
    return text


def _whole(make: Callable[..., Optional[str]], *args: object) -> Optional[str]:
    """A part of the report, or why there is none: the others are not to be lost with it."""
    try:
        return make(*args)
    except Exception as error:
        return f'{make.__name__}: {type(error).__name__}: {error}'


def table(columns: List[str], lines: List[list]) -> str:
    """A table in Markdown."""
    rows = [columns, ['---'] * len(columns), *lines]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows)


def _tests(rows: dict, _: dict) -> str:
    lines = []
    for what, one in rows.items():
        lines.append(
            f'Tests, {what}: {one["passed"]} passed, {len(one["failed"])} failed, '
            f'{len(one["skipped"])} skipped'
        )
        lines += [
            f'- {name}: {" ".join(text.split())[:160]}' for name, text in one['failed'].items()
        ]
    return '\n'.join(lines)


def _memory(rows: dict, found: dict) -> str:
    ways = list(dict.fromkeys(way for one in rows.values() for way in one))
    lines = []
    for name, one in rows.items():
        predicted = found.get('predicted', {}).get(name, {})
        cells = []
        for way in ways:
            of = one.get(way)
            if of is None or 'error' in of:
                cells.append('–' if of is None else of['error'][:40])
                continue
            guess = predicted.get(way, {}).get('mib')
            reserved = f' ({of["reserved"]:,.0f})' if 'reserved' in of else ''
            before = '' if guess is None else f'{guess:,.0f} → '
            cells.append(f'{before}{of["mib"]:,.0f}{reserved}')
        lines.append([name, *cells])
    title = 'Memory of a step, MiB: predicted → allocated (reserved)\n\n'
    return title + table(['network', *ways], lines)


def _time(rows: dict, _: dict) -> str:
    ways = list(dict.fromkeys(way for one in rows.values() for way in one))
    lines = []
    for name, one in rows.items():
        first = one.get('shipped', {}).get('median_ms')
        cells = []
        for way in ways:
            of = one.get(way)
            if of is None or 'median_ms' not in of:
                cells.append('–' if of is None else of.get('error', '–')[:40])
                continue
            cell = f'{of["median_ms"]:.0f}'
            if first and way != 'shipped':
                cell += f' ({of["median_ms"] / first:.2f})'
            cells.append(f'{cell}; {of["mib"]:,.0f} MiB; {of["waits"]["count"]} waits')
        lines.append([name, *cells])
    title = 'Time of a step, ms, median by turns (over that as shipped); peak; host waits\n\n'
    return title + table(['network', *ways], lines)


def _kernels(rows: dict, _: dict) -> str:
    lines = [
        [f'{name}: {way}', f'{of["ms"]:.0f}', f'{of["busy_ms"]:.0f}']
        + [of['launches'], of['synchronizations'], of['copies']]
        for name, one in rows.items()
        for way, of in one.items()
        if 'ms' in of
    ]
    columns = ['step', 'ms', 'busy ms', 'launches', 'synchronizations', 'copies']
    return 'Under the profiler\n\n' + table(columns, lines)


def _largest(what: str):
    def section(rows: dict, _: dict) -> str:
        caps = list(dict.fromkeys(cap for one in rows.values() for cap in one))
        lines = [[name, *(one.get(cap, '–') for cap in caps)] for name, one in rows.items()]
        return f'{what}, by MiB\n\n' + table(['training', *caps], lines)

    return section


def _training(rows: dict, _: dict) -> str:
    lines = [
        [name, method, of['epochs'], f'{of["accuracy"]:.2f}', f'{of["step_ms"]:.1f}']
        + [f'{of["seconds_per_epoch"]:.1f}']
        for name, one in rows.items()
        for method, of in one.items()
    ]
    columns = ['training', 'method', 'epochs', 'accuracy %', 'ms / step alone', 's / epoch']
    return table(columns, lines)


def _processes(rows: dict, _: dict) -> str:
    keys = list(dict.fromkeys(k for one in rows.values() for of in one.values() for k in of))
    lines = [
        [f'{name}: {way}', *(_short(of.get(key, '–')) for key in keys)]
        for name, one in rows.items()
        for way, of in one.items()
    ]
    return 'Several processes\n\n' + table(['training', *keys], lines)


def _short(value: object) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


SECTIONS = {
    'tests': _tests,
    'memory': _memory,
    'time': _time,
    'kernels': _kernels,
    'largest batch': _largest('Largest batch'),
    'largest image': _largest('Largest image, shorter side in px'),
    'training': _training,
    'processes': _processes,
}


def _draw_memory(rows: dict, found: dict, path: Path) -> None:
    """Predicted against measured, a point per network and way."""
    figure, axes = _figure()
    points: Dict[str, List[tuple]] = {}
    for name, one in rows.items():
        for way, of in one.items():
            guess = found.get('predicted', {}).get(name, {}).get(way, {})
            if 'mib' in guess and 'mib' in of:
                points.setdefault(way, []).append((guess['mib'], of['mib']))
    for way, some in points.items():
        axes.plot(*zip(*some), 'o', label=way)
    if points:
        ends = [value for some in points.values() for point in some for value in point]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color='0.6', zorder=0)
        axes.legend()
    axes.set(
        xscale='log', yscale='log', xlabel='predicted, MiB', ylabel='allocated at the peak, MiB'
    )
    figure.savefig(path)


def _draw_time(rows: dict, _: dict, path: Path) -> None:
    """Time over memory, a line per network."""
    figure, axes = _figure()
    marks = dict(zip(dict.fromkeys(w for one in rows.values() for w in one), 'osD^vPX*'))
    for number, (name, one) in enumerate(rows.items()):
        points = [(of['mib'], of['median_ms'], way) for way, of in one.items() if 'median_ms' in of]
        for i, (mib, ms, way) in enumerate(points):
            axes.plot(mib, ms, marks[way], color=f'C{number % 10}', label=None if i else name)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, fontsize=7)
    shapes = ', '.join(f'{mark} {way}' for way, mark in marks.items())
    axes.set(xscale='log', yscale='log', xlabel='peak, MiB', ylabel='ms per step')
    axes.set_title(shapes, fontsize=8)
    figure.savefig(path)


def _figure() -> tuple:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=140, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


PICTURES = {'memory': _draw_memory, 'time': _draw_time}
