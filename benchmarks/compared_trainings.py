"""Ways to train a model side by side: trainings, search, tables, pictures.

What ``classification.py``, ``detection.py``, ``segmentation.py`` and ``super_resolution.py`` share.
Every way is trained with every seed, with the same budget, going on where it stopped. With
``--search`` each way first gets a learning rate of its own, chosen on images held out of the
training set (``search.json``, ``search.md``); the test set is evaluated once for each training on
all training images, at its end. Steps of all ways are timed by turns, so that what else the machine
does meets all alike. Ends with tables, ``results.json``, ``table.md``, ``costs.png``: the score
over operations and peak memory of a step, as the FBA paper's Figure 1, ``modules.png`` for several
numbers of modules, and ``time.png``, the score over training time, once something has been trained
for several lengths.
"""

import argparse
import json
import re
import statistics
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import matplotlib
import torch
from mmengine.config import Config
from option_search import RateSearch, add_search_arguments, grid, hold_out, images_of
from rich.console import Console
from rich.table import Column, Table
from seeded_trainings import (
    ROOT,
    Results,
    file_name,
    markdown,
    run_all,
    spread,
    train,
)

from fba_mm import localize
from fba_mm.analysis import TrainingStep, measure_step, predict_memory
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.analysis.training_profile import seconds_by_turns
from fba_mm.config import load_config, type_name
from fba_mm.errors import LocalLearningError
from fba_mm.localize import checkpointed

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

BP = 'BP'
MIB = 2**20


@dataclass
class Costs:
    """What a training step of each way takes, by the way's name.

    Args:
        peaks: Bytes above parameters, buffers and optimizer state.
        operations: Floating-point operations, counted.
        seconds: By the clock.
        processor_seconds: Of the processor; none on a GPU.
    """

    peaks: Dict[str, int]
    operations: Dict[str, int]
    seconds: Dict[str, float]
    processor_seconds: Dict[str, float]

    def copy(self, name: str, of: str) -> None:
        """Give a way what another one takes.

        Args:
            name: The way.
            of: The other one.
        """
        for found in vars(self).values():
            if of in found:
                found[name] = found[of]


# As ``--checkpoint 3`` of tools/train.py: bit for bit the gradients of back-propagation.
CHECKPOINTED_SPANS = 3
# Ways to compute back-propagation's own gradients: they learn what it learns.
EXACT: Dict[str, tuple] = {
    'bp': (BP, lambda cfg: cfg),
    'bp_checkpointed': (
        'BP, checkpointed (exact)',
        lambda cfg: checkpointed(cfg, CHECKPOINTED_SPANS),
    ),
}


@dataclass
class Variant:
    """One way to train.

    Args:
        method: By its name on the command line.
        title: Of the method, in tables.
        modules: K; None for what is not cut, or has a K of its own.
    """

    method: str
    title: str
    modules: Any = None

    @property
    def is_exact(self) -> bool:
        """Whether it learns what back-propagation learns."""
        return self.method in EXACT

    @property
    def name(self) -> str:
        """In tables."""
        return self.title if self.modules is None else f'{self.title}, K={self.modules}'


@dataclass
class Comparison:
    """What is compared, and by what: ways to train one config of back-propagation.

    Args:
        name: Of the folder in ``work_dirs``.
        scores: Keys of what a training reached; the first one is searched for and drawn.
        figures: Reads these, and ``classes``, the score of each, from a work directory.
        config: Default of ``--config``.
        local: Ways of local learning: name in tables, and what ``localize()`` is told of a config.
        methods: Default of ``--methods``, keys of ``EXACT`` and ``local``.
        of_each_class: Name of the table of ``classes``.
        counted: What the length of a training is counted in, ``'epochs'`` or ``'iterations'``.
        scale: Of scores in tables and pictures; 100 for shares.
        unit: Of scores so scaled.
    """

    name: str
    scores: Sequence[str]
    figures: Callable[[Path], dict]
    config: str = ''
    local: Dict[str, tuple] = field(default_factory=dict)
    methods: Sequence[str] = ()
    of_each_class: str = ''
    counted: str = 'epochs'
    scale: float = 100
    unit: str = '%'

    @property
    def score(self) -> str:
        """What is drawn."""
        return self.scores[0]

    @property
    def searched(self) -> str:
        """What is searched for, a key of what a training with held-out images reached."""
        return self.score

    @property
    def label(self) -> str:
        """What is drawn, with its unit."""
        return f'{self.score}, {self.unit}'

    def digits(self, score: str) -> int:
        """How many a score has behind the point.

        Args:
            score: A key of what a training reached.
        """
        return 1

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what says which ways there are, and of what.

        Args:
            parser: Of the command line.
        """
        parser.add_argument('--config', default=self.config, help='a config of back-propagation')
        parser.add_argument(
            '--methods', nargs='+', choices=[*EXACT, *self.local], default=self.methods
        )
        parser.add_argument(
            '--modules', nargs='+', default=['4'], help="numbers of modules, or 'stages', 'blocks'"
        )
        self.add_size_argument(parser)

    def add_size_argument(self, parser: argparse.ArgumentParser) -> None:
        """Add what says how large images are, ``args.size``.

        Args:
            parser: Of the command line.
        """
        parser.add_argument(
            '--size',
            type=int,
            nargs=2,
            metavar=('WIDTH', 'HEIGHT'),
            help="what images are resized to; default: the config's",
        )

    def use(self, args: argparse.Namespace) -> None:
        """Take from the command line what can't be known before.

        Args:
            args: Of the command line.
        """

    def subject(self, args: argparse.Namespace) -> str:
        """What is trained, in some words.

        Args:
            args: Of the command line.
        """
        return Path(args.config).stem

    def folder(self, args: argparse.Namespace) -> str:
        """A folder for that: some configs have one name for several data sets.

        Args:
            args: Of the command line.
        """
        path = Path(args.config).resolve()
        inside = '::' not in args.config and ROOT in path.parents
        return str(path.relative_to(ROOT).with_suffix('')) if inside else path.stem

    def variants(self, args: argparse.Namespace) -> List[Variant]:
        """The ways to train that the command line asks for.

        Args:
            args: Of the command line.
        """
        numbers = [int(number) if number.isdigit() else number for number in args.modules]
        return [
            Variant(method, {**EXACT, **self.local}[method][0], number)
            for method in args.methods
            for number in ([None] if method in EXACT else numbers)
        ]

    def training_config(
        self,
        args: argparse.Namespace,
        variant: Variant,
        seed: int,
        length: Optional[int] = None,
        lr: Optional[float] = None,
    ) -> Config:
        """One training's config: the given one, with the budget that was asked for.

        Args:
            args: Of the command line.
            variant: The way to train.
            seed: What chance starts from.
            length: In epochs or iterations; unset, that of the command line or of the config.
            lr: Learning rate; unset, the config's.
        """
        cfg = load_config(args.config)
        cfg.randomness = dict(seed=seed)
        if lr is not None:
            cfg.optim_wrapper.optimizer.lr = lr
        set_length(cfg, length or args.length or length_of(cfg))
        if args.images is not None:
            cfg.train_dataloader.dataset.indices = args.images
        if args.batch is not None:
            cfg.train_dataloader.batch_size = args.batch
        if args.size is not None:
            for split in ('train', 'val', 'test'):
                for transform in cfg[f'{split}_dataloader'].dataset.pipeline:
                    if transform.type == 'Resize':
                        transform.scale = tuple(args.size)
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            if type_name(evaluator.type) == 'CocoMetric':
                # With masks, too, the classes' AP would be theirs.
                evaluator.update(classwise=True, metric='bbox')
        cfg.default_hooks = dict(
            cfg.default_hooks,
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=-1, save_last=False),
        )
        if variant.is_exact:
            return EXACT[variant.method][1](cfg)
        return localize(cfg, num_modules=variant.modules, **self.local[variant.method][1](cfg))

    def held_out(self, cfg: Config, folder: Path) -> Config:
        """A config that is validated on a part of its training images, and never tested.

        Args:
            cfg: Of a training.
            folder: Where annotations may go.
        """
        return hold_out(cfg, folder)

    def references(self, args: argparse.Namespace) -> Dict[str, dict]:
        """What is reached without any training: scores by name.

        Args:
            args: Of the command line.
        """
        return {}

    def training_step(self, cfg: Config, device: str) -> Callable[[], dict]:
        """One training step on random images and targets, to be measured.

        Args:
            cfg: Of a training.
            device: Where it runs.
        """
        step = TrainingStep(cfg, device)
        data = synthetic_batch(step.model, batch_shape(cfg))
        step(data)  # Makes what lasts, such as the optimizer's state.
        return lambda: step(data)


def length_of_equal_time(out: Path, of: str, length: float) -> int:
    """How long BP trains in the time of another training: measured once, then kept.

    Args:
        out: Where it is written down.
        of: The other training.
        length: BP's epochs or iterations in the same time, as they are measured now.
    """
    path = out / 'equal_time.json'
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(of, max(round(length), 1))
    path.write_text(json.dumps(known, indent=1))
    return known[of]


def length_of(cfg: Config) -> int:
    """A training's epochs, or iterations if it counts those."""
    return cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters


def set_length(cfg: Config, length: int) -> None:
    """Let a training last so long, its schedule with it; it is validated at its end.

    Args:
        cfg: Of a training. It is changed.
        length: In epochs, or iterations if the training counts those.
    """
    former, in_epochs = length_of(cfg), 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.update(
        {'max_epochs' if in_epochs else 'max_iters': length, 'val_interval': length}
    )
    schedulers = cfg.param_scheduler
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if scheduler.get('by_epoch', True) != in_epochs:
            continue
        for key, least in (('begin', 0), ('T_max', 1), ('end', 1)):
            if key in scheduler:
                scheduler[key] = max(round(scheduler[key] * length / former), least)
        if 'milestones' in scheduler:
            scheduler.milestones = [round(m * length / former) for m in scheduler.milestones]


def peak_bytes(step: Callable[[], dict], device: str) -> int:
    """The peak of one training step, above parameters, buffers and optimizer state."""
    return measure_step(step, device).peak_bytes


def processor_seconds(
    steps: Dict[str, Callable[[], dict]], device: str, rounds: int
) -> Dict[str, float]:
    """Median processor time of each step, by turns; none on a GPU.

    What else runs on the machine has little part in it.
    """
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for _ in range(rounds if torch.device(device).type == 'cpu' else 0):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in times.items() if found}


def over_seeds(values: Sequence[Optional[float]], scale: float, digits: int) -> str:
    """Mean and standard deviation over seeds, as text."""
    if None in values or not values:
        return '–'
    return spread([scale * value for value in values], digits)


def tables(
    results: Results,
    costs: Costs,
    rates: Dict[str, float],
    comparison: Comparison,
    references: Dict[str, dict],
) -> Dict[str, List[List[str]]]:
    """The rows of each table, its columns' names first.

    Args:
        results: Of each training.
        costs: Of a step.
        rates: Learning rates.
        comparison: What is compared.
        references: What is reached without any training.
    """

    def scores(by_seed: Dict[int, dict]) -> List[str]:
        return [
            over_seeds(
                [one[key] for one in by_seed.values()], comparison.scale, comparison.digits(key)
            )
            for key in comparison.scores
        ]

    columns = ['training', 'lr', 'seeds', *comparison.scores, 's / step', 'time / BP']
    rows = [columns + ['processor time / BP', 'operations / BP', 'peak MiB', 'peak / BP']]
    for name, found in references.items():
        row = [name, '–', '–', *scores({0: found})]
        rows.append(row + ['–'] * (len(rows[0]) - len(row)))
    for name, by_seed in results.items():
        rows.append(
            [
                name,
                f'{rates[name]:g}',
                str(len(by_seed)),
                *scores(by_seed),
                f'{costs.seconds[name]:.3f}',
                ratio(costs.seconds, name),
                ratio(costs.processor_seconds, name),
                ratio(costs.operations, name),
                f'{costs.peaks[name] / MIB:.1f}',
                ratio(costs.peaks, name),
            ]
        )
    tables = {'Accuracy, time and memory': rows}
    classes = list(
        dict.fromkeys(
            key
            for by_seed in results.values()
            for one in by_seed.values()
            for key in one['classes']
        )
    )
    if classes:
        tables[comparison.of_each_class] = [['training', *classes]] + [
            [
                name,
                *(
                    over_seeds(
                        [one['classes'].get(key, 0.0) for one in by_seed.values()],
                        comparison.scale,
                        1,
                    )
                    for key in classes
                ),
            ]
            for name, by_seed in results.items()
        ]
    return tables


def ratio(values: dict, name: str) -> str:
    """A variant's value over BP's, if there is one."""
    return f'{values[name] / values[BP]:.2f}' if BP in values and name in values else '–'


def mean_score(by_seed: Dict[int, dict], comparison: Comparison) -> float:
    """Mean over seeds of what is drawn."""
    return statistics.mean(comparison.scale * one[comparison.score] for one in by_seed.values())


def deviation(by_seed: Dict[int, dict], comparison: Comparison) -> float:
    """Standard deviation over seeds of what is drawn; 0 for one seed."""
    values = [comparison.scale * one[comparison.score] for one in by_seed.values()]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw_costs(
    results: Results,
    costs: Costs,
    variants: List[Variant],
    comparison: Comparison,
    title: str,
    path: Path,
) -> None:
    """Draw a score over operations and peak memory of a step, those of one method on a line."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout='constrained')
    sides = (
        ('operations of a training step, GFLOP', costs.operations, 1e9),
        ('peak memory of a training step, MiB', costs.peaks, MIB),
    )
    colours = plt.get_cmap('tab20')(range(20))
    for axes, (label, values, unit) in zip(panels, sides):
        for number, method in enumerate(dict.fromkeys(variant.title for variant in variants)):
            own = [variant for variant in variants if variant.title == method]
            points = [(values[v.name] / unit, mean_score(results[v.name], comparison)) for v in own]
            errors = [deviation(results[v.name], comparison) for v in own]
            marker = 'D-' if own[0].is_exact else 'o-'
            colour = colours[number % len(colours)]
            axes.errorbar(*zip(*points), errors, fmt=marker, capsize=3, color=colour, label=method)
            for variant, point in zip(own, points):
                if variant.modules is not None:
                    axes.annotate(
                        f'K={variant.modules}', point, xytext=(7, 5), textcoords='offset points'
                    )
        axes.margins(x=0.15, y=0.15)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=comparison.label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside right center')
    figure.suptitle(textwrap.fill(title, 110), fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def trained_so_far(folder: Path, counted: str) -> Dict[int, Dict[int, dict]]:
    """What is there of a variant with the same settings: by length, then by seed.

    Args:
        folder: Of the variant and the settings.
        counted: What lengths are counted in.
    """
    found: Dict[int, Dict[int, dict]] = {}
    for path in folder.glob(f'*_{counted}/seed_*/result.json'):
        length, seed = (int(re.sub(r'\D', '', part)) for part in path.parts[-3:-1])
        found.setdefault(length, {})[seed] = json.loads(path.read_text())
    return dict(sorted(found.items()))


def draw_time(
    budgets: Dict[str, Dict[int, Dict[int, dict]]],
    seconds: Dict[str, float],
    comparison: Comparison,
    title: str,
    path: Path,
) -> None:
    """Draw a score over training time, a line per variant, a point per length.

    Args:
        budgets: Of each variant, what :func:`trained_so_far` gives.
        seconds: Of a training step of each.
        comparison: What is compared.
        title: Of the picture.
        path: Where it goes.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for number, (name, by_length) in enumerate(budgets.items()):
        times = [length * seconds[name] / seconds[BP] for length in by_length]
        values = [mean_score(by_seed, comparison) for by_seed in by_length.values()]
        line, *_ = axes.errorbar(
            times,
            values,
            [deviation(by_seed, comparison) for by_seed in by_length.values()],
            fmt='D-' if name == BP else 'o-',
            capsize=3,
            label=name,
        )
        # Points of two lines often lie side by side: labels on different sides, in their colours.
        beside = (
            dict(xytext=(-6, 8), ha='right') if number % 2 else dict(xytext=(6, -12), ha='left')
        )
        for length, *point in zip(by_length, times, values):
            axes.annotate(
                f'{length} {comparison.counted}',
                point,
                textcoords='offset points',
                color=line.get_color(),
                **beside,
            )
    axes.margins(x=0.2, y=0.15)
    axes.legend()
    axes.set(xlabel=f'training time, in {comparison.counted} of BP', ylabel=comparison.label)
    axes.set_title(textwrap.fill(title, 90), fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_modules(
    results: Results,
    costs: Costs,
    variants: List[Variant],
    comparison: Comparison,
    title: str,
    path: Path,
) -> None:
    """Draw a score, peak memory and time over the number of modules; BP as a line."""
    values: Dict[str, Callable[[str], float]] = {
        comparison.label: lambda name: mean_score(results[name], comparison),
        'peak memory, MiB': lambda name: costs.peaks[name] / MIB,
        's / step': lambda name: costs.seconds[name],
    }
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout='constrained')
    local = [variant for variant in variants if variant.modules is not None]
    for axes, (label, value) in zip(panels, values.items()):
        for method in dict.fromkeys(variant.title for variant in local):
            own = [variant for variant in local if variant.title == method]
            axes.plot(
                [str(v.modules) for v in own], [value(v.name) for v in own], 'o-', label=method
            )
        if BP in results:
            axes.axhline(value(BP), color='gray', linestyle='--', label=BP)
        axes.set(xlabel='modules', ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_args(comparison: Comparison) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Ways to train a model side by side')
    comparison.add_arguments(parser)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--lr', type=float, help="of all ways, without --search; default: configs'")
    add_search_arguments(parser)
    parser.add_argument(
        '--equal-time', action='store_true', help='also BP for as long as each local way takes'
    )
    parser.add_argument(
        '--costs-only', action='store_true', help='measure a step of each way, train none'
    )
    parser.add_argument(
        f'--{comparison.counted}', dest='length', type=int, help="default: the config's"
    )
    parser.add_argument('--images', type=int, help='train on so many')
    parser.add_argument('--batch', type=int, help="default: the config's")
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='of the steps that are measured',
    )
    parser.add_argument('--rounds', type=int, default=5, help='turns in which steps are timed')
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time')
    parser.add_argument(
        '--out', type=Path, help=f'default: a folder of work_dirs/{comparison.name}'
    )
    return parser.parse_args()


def measured(comparison: Comparison, configs: Dict[str, Config], args) -> Costs:
    """What a step of each way takes.

    Args:
        comparison: What is compared.
        configs: Of each way.
        args: Of the command line.
    """
    steps = {name: comparison.training_step(cfg, args.device) for name, cfg in configs.items()}
    return Costs(
        peaks={name: peak_bytes(step, args.device) for name, step in steps.items()},
        operations={
            name: predict_memory(cfg, batch_shape(cfg)).flops for name, cfg in configs.items()
        },
        seconds=seconds_by_turns(steps, args.device, args.rounds),
        processor_seconds=processor_seconds(steps, args.device, args.rounds),
    )


def compare(comparison: Comparison) -> None:
    """Do what the command line asks for.

    Args:
        comparison: What is compared.

    Raises:
        LocalLearningError: A training failed, or the command line asks for what can't be.
    """
    args = parse_args(comparison)
    comparison.use(args)
    score, counted = comparison.score, comparison.counted
    console = Console()
    out = args.out or ROOT / 'work_dirs' / comparison.name / comparison.folder(args)
    out.mkdir(parents=True, exist_ok=True)
    variants = comparison.variants(args)
    by_name = {variant.name: variant for variant in variants}
    exact = [name for name, variant in by_name.items() if variant.is_exact and name != BP]
    if exact and BP not in by_name:
        raise LocalLearningError(f'{exact[0]} learns what BP learns: add bp to --methods')
    # What can't be trained is found before hours have gone into the others.
    configs = {}
    for name, variant in by_name.items():
        try:
            configs[name] = comparison.training_config(args, variant, args.seeds[0])
            TrainingStep(configs[name])
        except LocalLearningError as error:
            raise SystemExit(f'error: {name}: {error}') from error
    length = length_of(next(iter(configs.values())))
    rates = {name: args.lr or cfg.optim_wrapper.optimizer.lr for name, cfg in configs.items()}
    trained = [name for name in by_name if name not in exact]
    subject = ', '.join(
        [comparison.subject(args), f'{args.images or "all"} images', f'{length} {counted}']
    )

    def folder_of(name: str, lr: float) -> Path:
        settings = f'{args.images or "all"}_images_batch_{args.batch}_size_{args.size}'
        return out / file_name(name) / file_name(settings) / f'lr_{lr:g}'

    def training(name: str, seed: int, length: int) -> dict:
        lr = rates[name]
        folder = folder_of(name, lr) / f'{length}_{counted}' / f'seed_{seed}'
        cfg = comparison.training_config(args, by_name[name], seed, length, lr)
        return dict(train(folder, cfg, comparison.figures), **{counted: length})

    def validation(name: str, lr: float, seed: int) -> dict:
        cfg = comparison.held_out(comparison.training_config(args, by_name[name], seed, lr=lr), out)
        folder = folder_of(name, lr) / 'held_out' / f'{length}_{counted}' / f'seed_{seed}'
        return train(folder, cfg, comparison.figures, may_diverge=True)

    def say(found: dict) -> str:
        key = score if score in found else comparison.searched
        value = f'{comparison.scale * found.get(key, 0):.{comparison.digits(key)}f}'
        reached = 'diverged' if found.get('diverged') else f'{key} {value}'
        return f'{reached}, {found["minutes"]:.1f} minutes'

    one_for_all = len(set(rates.values())) == 1
    chosen_by = f'lr {rates[trained[0]]:g} for all' if one_for_all else 'lr of each config'
    if (args.search or args.search_only) and not args.costs_only:
        cfg = comparison.training_config(args, by_name[trained[0]], args.search_seeds[0])
        images = images_of(comparison.held_out(cfg, out))
        search = RateSearch(
            grid(rates[trained[0]], args.rates),
            comparison.searched,
            f'{subject}; to choose from, {images["train"]} training images to train on and '
            f'{images["val"]} to validate on, seeds {args.search_seeds}: '
            f'{comparison.searched}, {comparison.unit}',
            args.extensions,
            args.search_seeds,
            scale=comparison.scale,
            digits=comparison.digits(comparison.searched),
        )
        search.run(trained, validation, say, args.jobs, console)
        search.write(out)
        show(console, search.setting, search.table())
        if args.search_only:
            return
        rates.update(search.chosen())
        rates.update(dict.fromkeys(exact, rates.get(BP)))
        chosen_by = f'lr of each chosen on {images["val"]} held-out training images'

    results: Results = {name: {} for name in trained}
    if not args.costs_only:
        results = run_all(
            trained,
            args.seeds,
            lambda name, seed: training(name, seed, length),
            say,
            args.jobs,
            console,
        )
    # In the order of the command line.
    results = {name: results[BP if name in exact else name] for name in by_name}
    costs = measured(comparison, configs, args)
    if args.equal_time and BP in results and not args.costs_only:
        lengths: Dict[int, List[str]] = {}
        for name in (variant.name for variant in variants if not variant.is_exact):
            share = costs.seconds[name] / costs.seconds[BP]
            same = length_of_equal_time(out, f'{length} {counted} of {name}', share * length)
            lengths.setdefault(same, []).append(name)
        for same, names in lengths.items():
            name = f'BP, {same} {counted} (time of {" and ".join(names)})'
            found = run_all(
                [name],
                args.seeds,
                lambda _, seed, same=same: training(BP, seed, same),
                say,
                args.jobs,
                console,
            )
            results.update(found)
            rates[name] = rates[BP]
            costs.copy(name, BP)

    title = f'{subject}, last checkpoint, seeds {args.seeds}, {chosen_by}, {args.device}'
    if args.costs_only:
        title = f'{comparison.subject(args)}, costs of a step, {args.device}'
    text = f'{title}\n'
    for name, rows in tables(
        results, costs, rates, comparison, comparison.references(args)
    ).items():
        show(console, f'{name}: {title}', rows)
        text += f'\n{name}\n\n{markdown(rows)}'
    (out / 'table.md').write_text(text)
    found = dict(results=results, costs=vars(costs), lr=rates)
    (out / 'results.json').write_text(json.dumps(found, indent=1))
    if not args.costs_only:
        draw_costs(results, costs, variants, comparison, title, out / 'costs.png')
        if len({variant.modules for variant in variants} - {None}) > 1:
            draw_modules(results, costs, variants, comparison, title, out / 'modules.png')
        budgets = {
            name: trained_so_far(folder_of(BP if name in exact else name, rates[name]), counted)
            for name in by_name
        }
        if BP in by_name and any(len(by_length) > 1 for by_length in budgets.values()):
            draw_time(
                budgets,
                costs.seconds,
                comparison,
                title.replace(f', {length} {counted}', '').replace(f', seeds {args.seeds}', ''),
                out / 'time.png',
            )
    console.print(f'{out}/table.md, results.json and pictures')


def show(console: Console, title: str, rows: List[List[str]]) -> None:
    """Print a table, its columns' names first."""
    # Folded, not cut off, where there are more columns than a terminal has room for.
    table = Table(*(Column(name, overflow='fold') for name in rows[0]), title=title)
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
