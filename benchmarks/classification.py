r"""Local-learning methods side by side on one classification data set.

    python benchmarks/classification.py                       # digits: minutes, nothing to download
    python benchmarks/classification.py --data cifar10_jpeg --images 1000 --epochs 12 \
        --batch 128 --search --seeds 0 1 2

Trains the configs of ``configs/classification/<data>``, each method with every seed, as
``compared_trainings.py`` says. The table has accuracy, time, operations and peak memory of a step.
"""

import argparse
import copy
from pathlib import Path
from typing import Callable, List, Optional

import torch
from compared_trainings import CHECKPOINTED_SPANS, EXACT, Comparison, Variant, compare
from mmengine.config import Config
from mmpretrain.structures import DataSample
from seeded_trainings import ROOT, accuracy_and_time

from fba_mm import command_line
from fba_mm.analysis import TrainingStep
from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.config import load_config
from fba_mm.localize import checkpointed

METHODS = dict(
    bp=EXACT['bp'][0],
    bp_checkpointed=EXACT['bp_checkpointed'][0],
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


class Classification(Comparison):
    """Compares methods that have a config each."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what says which configs.

        Args:
            parser: Of the command line.
        """
        parser.add_argument('--data', default='digits', help='a folder of configs/classification')
        parser.add_argument('--network', default='resnet32', help="first part of configs' names")
        parser.add_argument(
            '--methods',
            nargs='+',
            choices=list(METHODS),
            help='default: all that have a config for the data',
        )
        parser.add_argument('--size', type=int, help="of the images; default: the data's")

    def subject(self, args: argparse.Namespace) -> str:
        """What is trained, in some words.

        Args:
            args: Of the command line.
        """
        size = f', {args.size} px' if args.size else ''
        return f'{args.network} on {args.data}{size}'

    def folder(self, args: argparse.Namespace) -> str:
        """A folder for that.

        Args:
            args: Of the command line.
        """
        return f'{args.data}/{args.network}'

    def variants(self, args: argparse.Namespace) -> List[Variant]:
        """The methods that the command line asks for.

        Args:
            args: Of the command line.
        """
        methods = args.methods or [m for m in METHODS if config_path(args, m).exists()]
        return [Variant(method, METHODS[method]) for method in methods]

    def training_config(
        self,
        args: argparse.Namespace,
        variant: Variant,
        seed: int,
        length: Optional[int] = None,
        lr: Optional[float] = None,
    ) -> Config:
        """One training's config: the method's own, with the budget that was asked for.

        Args:
            args: Of the command line.
            variant: The method.
            seed: What chance starts from.
            length: In epochs; unset, that of the command line or of the config.
            lr: Learning rate; unset, the config's.
        """
        cfg = load_config(str(config_path(args, variant.method)))
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        loop = dict(type='DeviceEpochLoop', joint_sample=True, channels_last=True)
        cfg.train_cfg.pop('by_epoch', None)
        cfg.train_cfg.update(loop)
        if args.images is not None:
            cfg.train_cfg.max_images = args.images  # Evenly from the data set.
        epochs = length or args.length
        if epochs is not None:
            cfg.train_cfg.max_epochs = epochs
            cfg.param_scheduler = schedule(epochs)
        # Once, at the end: there is no epoch to choose.
        cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
        if args.batch is not None:
            cfg.train_dataloader.batch_size = args.batch
        if lr is not None:
            cfg.optim_wrapper.optimizer.lr = lr
        # An epoch's time is told by its last iteration's line.
        cfg.default_hooks.logger.interval = 1
        cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
        if args.size is not None:
            cfg = resized(cfg, args.size)
        return checkpointed(cfg, CHECKPOINTED_SPANS) if variant.method == 'bp_checkpointed' else cfg

    def training_step(self, cfg: Config, device: str) -> Callable[[], dict]:
        """One training step on random images, to be measured.

        Args:
            cfg: Of a training.
            device: Where it runs.
        """
        step = TrainingStep(cfg, device)
        step.model.to(memory_format=torch.channels_last)
        data = synthetic_batch(step.model, batch_shape(cfg))
        # One sample with all labels, as in training.
        labels = torch.cat([sample.gt_label for sample in data['data_samples']])
        data['data_samples'] = [DataSample().set_gt_label(labels)]
        step(data)
        return lambda: step(data)


def schedule(epochs: int) -> List[dict]:
    """A cosine after an epoch of warm-up: few epochs leave no time to recover from large steps.

    Args:
        epochs: Of the training.
    """
    warm_up = min(1, epochs - 1)
    common = dict(by_epoch=True, convert_to_iter_based=True)
    cosine = dict(type='CosineAnnealingLR', begin=warm_up, T_max=epochs - warm_up, **common)
    rise = dict(type='LinearLR', start_factor=0.1, begin=0, end=warm_up, **common)
    return [rise, cosine] if warm_up else [cosine]


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
    name = 'bp' if method == 'bp_checkpointed' else method
    return CONFIGS / args.data / f'{args.network}_{name}.py'


def figures(work_dir: Path) -> dict:
    """What a training reached."""
    return dict(accuracy=accuracy_and_time(work_dir)['accuracy'] / 100, classes={})


COMPARISON = Classification(name='classification', scores=('accuracy',), figures=figures)


def main() -> None:
    compare(COMPARISON)


if __name__ == '__main__':
    command_line.run(main)
