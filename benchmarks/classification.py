r"""Local-learning methods side by side on one classification data set.

    python benchmarks/classification.py                       # digits: minutes, nothing to download
    python benchmarks/classification.py --data cifar10_jpeg --images 1000 --epochs 12 \
        --batch 128 --search --seeds 0 1 2

Trains the configs of ``configs/classification/<data>``, each method with each seed, with the same
budget, and goes on where it stopped. With ``--search`` each method first gets a learning rate of
its own, chosen on images held out of the training set (``search.json``, ``search.md``). Then times
steps of all methods by turns, so that what else the machine does meets all alike. Ends with a table
(accuracy; time by the clock and of the processor, operations and peak memory of a step),
``results.json``, ``table.md`` and ``classification.png``: accuracy over the operations of a step,
as the FBA paper's Figure 1a has it over the time of an epoch, and over its peak memory.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import matplotlib
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from option_search import RateSearch, add_search_arguments, grid, hold_out, images_of
from rich.console import Console
from rich.table import Table
from seeded_trainings import (
    ROOT,
    Results,
    accuracy_and_time,
    file_name,
    markdown,
    run_all,
    spread,
    train,
)

from fba_mm import command_line
from fba_mm.analysis import TrainingStep, measure_step, predict_memory
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.analysis.training_profile import seconds_by_turns
from fba_mm.config import load_config
from fba_mm.localize import checkpointed

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

# As ``--checkpoint 3`` of tools/train.py: bit for bit the gradients of back-propagation, so that it
# learns what that learns, and is measured but not trained.
CHECKPOINTED, CHECKPOINTED_SPANS = 'bp_checkpointed', 3
METHODS = dict(
    bp='BP',
    bp_checkpointed='BP, checkpointed (exact)',
    greedy='Greedy',
    predsim='PredSim',
    dgl='DGL',
    infopro='InfoPro',
    auglocal='AugLocal',
    man='MAN',
    manpp='MAN++',
    fba='FBA, SLM',
    fba_stage_tail='FBA, stage tail',
    fba_k8='FBA, K=8, two blocks',
)
CONFIGS = ROOT / 'configs/classification'
MIB = 2**20

Shape = Tuple[int, ...]


def config(args: argparse.Namespace, method: str, seed: int, lr: Optional[float]) -> Config:
    """One training's config: the method's own, with the budget that was asked for.

    Args:
        args: Of the command line.
        method: A key of ``METHODS``.
        seed: What chance starts from.
        lr: Learning rate; None for the config's.
    """
    base = config_path(args, method)
    lines = [f'_base_ = {str(base)!r}', f'randomness = dict(seed={seed})']
    loop = dict(type='DeviceEpochLoop', joint_sample=True, channels_last=True)
    if args.images is not None:
        loop.update(max_images=args.images)
    if args.epochs is not None:
        loop.update(max_epochs=args.epochs)
        lines.append(
            f"param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, begin=0, "
            f'T_max={args.epochs}, convert_to_iter_based=True, _delete_=True)'
        )
    lines.append(f'train_cfg = {loop!r}')
    if args.batch is not None:
        lines.append(f'train_dataloader = dict(batch_size={args.batch})')
    if lr is not None:
        lines.append(f'optim_wrapper = dict(optimizer=dict(lr={lr}))')
    # An epoch's time is told by its last iteration's line.
    lines.append(
        'default_hooks = dict(logger=dict(interval=1), '
        'checkpoint=dict(interval=-1, save_last=False))'
    )
    cfg = Config.fromstring('\n'.join(lines) + '\n', '.py')
    # Once, at the end: there is no epoch to choose.
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    return cfg if args.size is None else resized(cfg, args.size)


def resized(cfg: Config, size: int) -> Config:
    """A config that learns from images of another size, crops and what is measured in it included.

    Args:
        cfg: A config. It is not changed.
        size: Height and width in pixels.
    """
    cfg = copy.deepcopy(cfg)
    resize = dict(type='Resize', scale=(size, size))
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        loading = [t for t in dataset.pipeline if t.type == 'LoadImageFromFile']
        others = [copy.deepcopy(t) for t in dataset.pipeline if t.type != 'LoadImageFromFile']
        crop = next((t for t in others if t.type == 'RandomCrop'), None)
        if crop is not None:
            # Padding with them, so that an image is moved by as large a part of itself.
            for transform in others:
                if transform.get('padding'):
                    transform.padding = round(transform.padding * size / crop.crop_size)
            crop.crop_size = size
        dataset.pipeline = [*loading, resize, *others]
    auxiliary = cfg.model.backbone.get('auxiliary') or {}
    if auxiliary.get('type') == 'PredSim':
        auxiliary.image_size = size
    return cfg


def config_path(args: argparse.Namespace, method: str) -> Path:
    """The config of a method for the data, whether there is one or not."""
    name = 'bp' if method == CHECKPOINTED else method
    return CONFIGS / args.data / f'{args.network}_{name}.py'


def own_config(args: argparse.Namespace, method: str) -> Config:
    """A method's config as it is, for images of the size that was asked for."""
    cfg = load_config(str(config_path(args, method)))
    if method == CHECKPOINTED:
        cfg = checkpointed(cfg, CHECKPOINTED_SPANS)
    return cfg if args.size is None else resized(cfg, args.size)


def shape_of(args: argparse.Namespace, cfg: Config, batch: Optional[int] = None) -> Shape:
    """Of the images of a step."""
    batch = batch or args.batch or cfg.train_dataloader.batch_size
    return (batch, 3, *([args.size] * 2 if args.size else batch_shape(cfg)[2:]))


def operations(args: argparse.Namespace, method: str) -> int:
    """Floating-point operations of a training step, counted."""
    cfg = own_config(args, method)
    return predict_memory(cfg, shape_of(args, cfg)).flops


def training_step(
    args: argparse.Namespace, method: str, batch: Optional[int]
) -> Callable[[], dict]:
    """One training step of a method on a synthetic batch, to be measured."""
    cfg = own_config(args, method)
    step = TrainingStep(cfg, args.device)
    step.model.to(memory_format=torch.channels_last)
    data = synthetic_batch(step.model, shape_of(args, cfg, batch))
    # One sample with all labels, as in training.
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    data['data_samples'] = [DataSample().set_gt_label(labels)]
    step(data)
    return lambda: step(data)


def peak_bytes(args: argparse.Namespace, method: str) -> int:
    """The peak of one training step, above parameters, buffers and optimizer state."""
    return measure_step(training_step(args, method, args.memory_batch), args.device).peak_bytes


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


def print_table(
    results: Results,
    peaks: Dict[str, int],
    seconds: Dict[str, float],
    processor: Dict[str, float],
    flops: Dict[str, int],
    rates: Dict[str, float],
    args: argparse.Namespace,
    console: Console,
) -> str:
    """Print what was found; returns it as Markdown too."""
    columns = ['method', 'lr', 'accuracy %', 's / step', 'time / BP', 'processor time / BP']
    columns += ['operations / BP', 'peak MiB', 'peak / BP']
    table = Table(title=title(args))
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    for column in columns:
        table.add_column(column)
    for method, by_seed in results.items():
        row = [
            METHODS[method],
            f'{rates[method]:g}',
            spread([one['accuracy'] for one in by_seed.values()]) if by_seed else '–',
            f'{seconds[method]:.2f}',
            ratio(seconds, method),
            ratio(processor, method),
            ratio(flops, method),
            f'{peaks[method] / MIB:.1f}',
            ratio(peaks, method),
        ]
        table.add_row(*row)
        lines.append('| ' + ' | '.join(row) + ' |')
    console.print(table)
    return '\n'.join(lines) + '\n'


def ratio(values: dict, method: str) -> str:
    """A method's value over BP's, if there is one."""
    return f'{values[method] / values["bp"]:.2f}' if 'bp' in values else '–'


def title(args: argparse.Namespace) -> str:
    """What was trained on what."""
    parts = [f'{args.network} on {args.data}']
    parts += [
        f'{value} {name}'
        for name, value in (('images', args.images), ('px', args.size), ('epochs', args.epochs))
        if value is not None
    ]
    if args.costs_only:
        return ', '.join([*parts, 'costs of a step', args.device])
    chosen = ['lr of each chosen on held-out training images'] if args.search else []
    return ', '.join(parts + ['last epoch', f'seeds {args.seeds}', *chosen, args.device])


def draw(
    results: Results,
    flops: Dict[str, int],
    peaks: Dict[str, int],
    args: argparse.Namespace,
    path: Path,
) -> None:
    """Draw accuracy over operations and over peak memory of a step, one point per method."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout='constrained')
    sides = (
        ('operations of a step, GFLOP', {name: count / 1e9 for name, count in flops.items()}),
        ('peak memory of a step, MiB', {name: peak / MIB for name, peak in peaks.items()}),
    )
    colours = plt.get_cmap('tab20')(range(20))
    for axes, (label, costs) in zip(panels, sides):
        for number, (method, by_seed) in enumerate(results.items()):
            accuracy = [one['accuracy'] for one in by_seed.values()]
            strong = method.startswith(('bp', 'fba'))
            axes.errorbar(
                costs[method],
                statistics.mean(accuracy),
                statistics.stdev(accuracy) if len(accuracy) > 1 else 0,
                fmt='D' if strong else 'o',
                markersize=9 if strong else 6,
                capsize=3,
                color=colours[number],
                label=METHODS[method],
            )
        axes.margins(x=0.1, y=0.1)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel='test accuracy, %')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside right center')
    figure.suptitle(title(args), fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Local-learning methods side by side')
    parser.add_argument('--data', default='digits', help='a folder of configs/classification')
    parser.add_argument('--network', default='resnet32', help="first part of the configs' names")
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=list(METHODS),
        help='default: all that have a config for the data',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--epochs', type=int, help="default: the configs'")
    parser.add_argument('--images', type=int, help='train on so many, evenly from the data set')
    parser.add_argument('--batch', type=int, help="default: the configs'")
    parser.add_argument('--lr', type=float, help="default: the configs'")
    add_search_arguments(parser)
    parser.add_argument('--memory-batch', type=int, help='images of the step whose peak is shown')
    parser.add_argument(
        '--costs-only', action='store_true', help='measure steps of all methods, train none'
    )
    parser.add_argument('--rounds', type=int, default=5, help='timed steps of each method')
    parser.add_argument('--size', type=int, help="of the images; default: the data's")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time')
    parser.add_argument('--out', type=Path, help='default: work_dirs/classification/<data>')
    args = parser.parse_args()
    if args.methods is None:
        args.methods = [method for method in METHODS if config_path(args, method).exists()]
    if CHECKPOINTED in args.methods and 'bp' not in args.methods:
        parser.error(f'{CHECKPOINTED} learns what bp learns: add bp to --methods')
    return args


def main() -> None:
    args = parse_args()
    console = Console()
    out = args.out or ROOT / 'work_dirs/classification' / args.data
    stock = [load_config(str(config_path(args, method))) for method in args.methods]
    trained = [method for method in args.methods if method != CHECKPOINTED]
    rates = {
        method: args.lr or cfg.optim_wrapper.optimizer.lr
        for method, cfg in zip(args.methods, stock)
    }

    def folder_of(method: str, lr: float) -> Path:
        budget = (
            f'{args.images or "all"}_images_{args.epochs or "all"}_epochs_'
            f'batch_{args.batch}_size_{args.size}_lr_{lr:g}'
        )
        return out / f'{args.network}_{method}' / file_name(budget)

    def one(method: str, seed: int) -> dict:
        lr = rates[method]
        folder = folder_of(method, lr) / f'seed_{seed}'
        return train(folder, config(args, method, seed, lr), accuracy_and_time)

    def validation(method: str, lr: float, seed: int) -> dict:
        cfg = hold_out(config(args, method, seed, lr), out)
        folder = folder_of(method, lr) / 'held_out' / f'seed_{seed}'
        return train(folder, cfg, accuracy_and_time, may_diverge=True)

    def say(found: dict) -> str:
        if found.get('diverged'):
            return 'diverged'
        return f'{found["accuracy"]:.2f} %, {found["seconds_per_epoch"]:.1f} s per epoch'

    if args.search and not args.costs_only:
        images = images_of(hold_out(stock[0], out))
        search = RateSearch(
            grid(rates[args.methods[0]], args.rates),
            'accuracy',
            f'{title(args)}; to choose from, {images["train"]} training images to train on and '
            f'{images["val"]} to validate on, seeds {args.search_seeds}: accuracy, %',
            args.extensions,
            args.search_seeds,
        )
        search.run(trained, validation, say, args.jobs, console)
        search.write(out)
        console.print(markdown(search.table()))
        rates = search.chosen()
    if args.costs_only:
        results: Results = {method: {} for method in args.methods}
        out.mkdir(parents=True, exist_ok=True)
    else:
        results = run_all(trained, args.seeds, one, say, args.jobs, console)
    if CHECKPOINTED in args.methods:
        results[CHECKPOINTED], rates[CHECKPOINTED] = results['bp'], rates['bp']
    # In the order of the command line.
    results = {method: results[method] for method in args.methods}
    peaks = {method: peak_bytes(args, method) for method in args.methods}
    steps = {method: training_step(args, method, None) for method in args.methods}
    seconds = seconds_by_turns(steps, args.device, args.rounds)
    processor = processor_seconds(steps, args.device, args.rounds)
    flops = {method: operations(args, method) for method in args.methods}
    table = print_table(results, peaks, seconds, processor, flops, rates, args, console)
    (out / 'table.md').write_text(f'{title(args)}\n\n{table}')
    (out / 'results.json').write_text(
        json.dumps(
            dict(
                results=results,
                peaks=peaks,
                step_seconds=seconds,
                processor_seconds=processor,
                operations=flops,
                lr=rates,
            ),
            indent=1,
        )
    )
    if not args.costs_only:
        draw(results, flops, peaks, args, out / 'classification.png')
    console.print(f'{out}/table.md and what lies beside it')


if __name__ == '__main__':
    command_line.run(main)
