"""What FBA's options do for a classifier: accuracy, and the gradient that reaches each module.

    python benchmarks/bank_uses.py [--seeds 0] [--variants ...] [--jobs 2]

Trains a ResNet (ResNet-20 in 10 modules, if nothing else is asked for) on a part of CIFAR-10 by
FBA, with the model's head shared by all modules and with heads of their own, once for each use of
the bank, with more blocks in the auxiliary networks, and by back-propagation. After training,
measures the norm of the gradient that a module's loss sends into the module, with the bank and as
if it were not there: a use under which the first is a small fraction of the second answers for the
module. Goes on where it stopped.
"""

import argparse
import statistics
from pathlib import Path
from typing import Dict, List

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import load_checkpoint
from rich.console import Console
from rich.table import Table
from seeded_trainings import ROOT, accuracy_and_time, file_name, run_all, spread, train

from fba_mm import command_line
from fba_mm.analysis import TrainingStep
from fba_mm.config import load_config
from fba_mm.datasets.device_batches import DeviceBatches

BASE = ROOT / 'configs/classification'
# Use of the bank, and the scope that it needs.
USES = {
    'no bank': (None, 'off'),
    'gated context': (dict(type='GatedContext'), 'past'),
    'gated context, deep': (dict(type='GatedContext'), 'all'),
    'feature target': (dict(type='FeatureTarget'), 'all'),
    'logit target': (dict(type='LogitTarget'), 'all'),
    'class memory': (dict(type='ClassMemory', num_classes=10), 'past'),
    'sample memory': (dict(type='SampleMemory', num_classes=10), 'past'),
}
# Options of SLM, without a bank.
BLOCKS = {
    'two blocks per stage': dict(blocks_per_stage=2),
    'own stage finished': dict(finish_stage=True),
}
VARIANTS = [
    'BP',
    *(f'{blocks}, own head' for blocks in BLOCKS),
    *(f'{use}, {head} head' for head in ('own', 'shared') for use in USES),
]


def config(args: argparse.Namespace, variant: str, seed: int) -> str:
    """The text of one training's config."""
    base = BASE / args.data / f'resnet32_{"bp" if variant == "BP" else "fba"}.py'
    lines = [f'_base_ = {str(base)!r}', f'randomness = dict(seed={seed})']
    if variant == 'BP':
        lines.append(f'model = dict(backbone=dict(depth={args.depth}))')
    else:
        name, head = variant.rsplit(', ', 1)
        use, scope = USES.get(name, (None, 'off'))
        # The config's modules have heads of their own: without them, they share the model's.
        auxiliary = dict(type='SLM') if head == 'own head' else dict(type='SLM', _delete_=True)
        auxiliary.update(BLOCKS.get(name, {}))
        if use is not None:
            count = {'num_samples': args.images} if use['type'] == 'SampleMemory' else {}
            auxiliary.update(bank_use=dict(use, **count))
        lines.append(
            f'model = dict(backbone=dict(backbone=dict(depth={args.depth}), '
            f'num_modules={args.num_modules}, auxiliary={auxiliary!r}))'
        )
        lines.append(f'custom_hooks = [dict(type="FBAHook", scope={scope!r})]')
    loop = dict(
        type='DeviceEpochLoop',
        joint_sample=True,
        channels_last=True,
        max_images=args.images,
        max_epochs=args.epochs,
        val_interval=args.epochs,
    )
    lines.append(f'train_cfg = {loop!r}')
    lines.append(f'train_dataloader = dict(batch_size={args.batch})')
    lines.append(
        "param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, begin=0, "
        f'T_max={args.epochs}, convert_to_iter_based=True, _delete_=True)'
    )
    lines.append(f'optim_wrapper = dict(optimizer=dict(lr={args.lr}))')
    lines.append('default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=-1))')
    return '\n'.join(lines) + '\n'


def figures(work_dir: Path) -> dict:
    """What a training reached, its time, and the gradients of its modules."""
    found = accuracy_and_time(work_dir)
    cfg = load_config(str(next(work_dir.glob('*.py'))))
    if cfg.model.backbone.type == 'LocalBackbone':
        found.update(gradients=gradients(cfg, next(work_dir.glob('epoch_*.pth'))))
    return found


def gradients(cfg: Config, checkpoint: Path, batches: int = 8) -> Dict[str, List[float]]:
    """Norm of the gradient that each module gets, with and without its bank, over some batches."""
    step = TrainingStep(cfg)
    load_checkpoint(step.model, str(checkpoint), map_location='cpu', strict=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    loader = DeviceBatches.from_dataset(
        dataset, cfg.train_dataloader.batch_size, max_images=cfg.train_cfg.max_images
    )
    hook, local_backbone = step.hooks[0], step.model.backbone
    norms: List[float] = []

    def measure(index: int, losses: dict) -> None:
        loss, _ = step.model.parse_losses(losses)
        parameters = [
            p
            for i in local_backbone.module_segments[index]
            for p in local_backbone.segments[i].parameters(local_backbone.backbone)
        ]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        norms.append(float(sum(g.square().sum() for g in found if g is not None).sqrt()))

    hook.train_module = measure
    result = {}
    for name in ('with', 'without'):
        if name == 'without':
            hook.bank.scope = 'off'
            for auxiliary in local_backbone.auxiliary:
                auxiliary.bank_use = None
        norms.clear()
        loader.set_epoch(0)  # the same images, cut and mirrored alike
        for _, data in zip(range(batches), loader):
            step.model(**step.model.data_preprocessor(data, True), mode='loss')
        modules = local_backbone.num_modules - 1
        assert len(norms) == batches * modules, 'modules were trained instead of measured'
        result[name] = torch.tensor(norms).view(-1, modules).mean(0).tolist()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description='What the bank does for a classifier')
    parser.add_argument('--data', default='cifar10_jpeg', help='a folder of configs/classification')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=VARIANTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--depth', type=int, default=20, help='layers of the ResNet')
    parser.add_argument('--num-modules', type=int, default=10)
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/bank_uses')
    args = parser.parse_args()
    console = Console()
    network = f'ResNet-{args.depth}, K={args.num_modules}'
    budget = file_name(f'{network} {args.data} {args.images} {args.epochs} {args.batch} {args.lr}')

    def one(variant: str, seed: int) -> dict:
        folder = args.out / budget / file_name(variant) / f'seed_{seed}'
        return train(folder, config(args, variant, seed), figures)

    def say(found: dict) -> str:
        return f'{found["accuracy"]:.2f} %, {found["seconds_per_epoch"]:.1f} s per epoch'

    results = run_all(args.variants, args.seeds, one, say, args.jobs, console)
    table = Table(
        title=f'{network}, {args.images} images of {args.data}, {args.epochs} '
        f'epochs, seeds {args.seeds}'
    )
    for column in ('FBA with', 'accuracy %', 's / epoch', 'gradient, with bank / without'):
        table.add_column(column)
    for variant, by_seed in results.items():
        shares = [
            a / b
            for one in by_seed.values()
            if 'gradients' in one
            for a, b in zip(one['gradients']['with'], one['gradients']['without'])
        ]
        table.add_row(
            variant,
            spread([one['accuracy'] for one in by_seed.values()]),
            f'{statistics.median(one["seconds_per_epoch"] for one in by_seed.values()):.1f}',
            f'{min(shares):.2f} to {max(shares):.2f}' if shares else '–',
        )
    console.print(table)


if __name__ == '__main__':
    command_line.run(main)
