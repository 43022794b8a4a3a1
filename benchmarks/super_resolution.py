r"""Ways to train a network for super-resolution side by side.

    python tools/dataset_converters/build_photo_pairs.py data/Set5 --images FOLDER      # and Set14
    python tools/dataset_converters/build_photo_pairs.py data/sr_train --images FOLDER \
        --tile-size 192
    python benchmarks/super_resolution.py --train data/sr_train --test data/Set5 data/Set14 \
        --batch 8 --search --search-seeds 0 1 --seeds 0 1 2

Trains a config of back-propagation (EDSR ×2: 16 blocks, 64 channels) in every way with every seed,
as ``compared_trainings.py`` says. The table has PSNR and SSIM of each test set on Y and RGB, with
those of interpolation, time, operations and peak memory of a step. Without ``--train`` and
``--test``, on the photos that scikit-image and scikit-learn install.
"""

import argparse
import copy
import re
from pathlib import Path
from typing import Dict, Optional

import numpy as np
from compared_trainings import Comparison, Variant, compare
from mmengine.config import Config
from option_search import hold_out
from PIL import Image
from seeded_trainings import scalars

from fba_mm import command_line

from mmagic.evaluation import PSNR, SSIM  # isort: skip  # fba_mm makes it importable

METRICS = {'PSNR': PSNR, 'SSIM': SSIM}
CHANNELS = {'_Y': 'Y', '': None}
HELD_OUT = 'held_out'
# Of the held-out tiles every so many is validated on: enlarging a photo takes as long as training.
HELD_OUT_STEP = 8


def own(**settings) -> dict:
    """An auxiliary network with a head of its own."""
    return dict(auxiliary=dict(type='SLMReconstruction', head='own', **settings))


# Of local learning: name in tables, and what localize() is told.
LOCAL: Dict[str, tuple] = {
    'fba': ('FBA', lambda cfg: {}),
    'fba_shared': ('FBA, shared head', lambda cfg: dict(auxiliary='shared')),
    'fba_first_map': ('FBA, first map', lambda cfg: own(skip=True)),
    'fba_no_residual': ('FBA, no residual', lambda cfg: own(residual='network')),
    'fba_first_map_no_residual': (
        'FBA, first map, no residual',
        lambda cfg: own(skip=True, residual='network'),
    ),
    'fba_weak': ('FBA, loss weight 0.1', lambda cfg: own(loss_weight=0.1)),
}


class SuperResolution(Comparison):
    """Compares what is learned from pairs of photos, on several test sets."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what says which ways there are, and which photos.

        Args:
            parser: Of the command line.
        """
        super().add_arguments(parser)
        photos = Path('data/photo_pairs')
        parser.add_argument('--train', type=Path, default=photos / 'train', help='a folder')
        parser.add_argument(
            '--test', type=Path, nargs='+', default=[photos / 'val'], help='folders'
        )

    def add_size_argument(self, parser: argparse.ArgumentParser) -> None:
        """Add what says how large patches are.

        Args:
            parser: Of the command line.
        """
        parser.add_argument(
            '--size', type=int, help="low-resolution side of patches in px; default: the config's"
        )

    def folder(self, args: argparse.Namespace) -> str:
        """A folder for a config and data.

        Args:
            args: Of the command line.
        """
        data = '_'.join(path.name for path in (args.train, *args.test))
        return f'{super().folder(args)}/{data}'

    def use(self, args: argparse.Namespace) -> None:
        """Take the test sets' scores for those that are compared.

        Args:
            args: Of the command line.
        """
        self.scores = [
            score_name(f'{path.name}{suffix}/{metric}')
            for path in args.test
            for suffix in CHANNELS
            for metric in METRICS
        ]

    @property
    def searched(self) -> str:
        """What is searched for: held-out photos are no test set's."""
        return score_name(f'{HELD_OUT}_Y/PSNR')

    def digits(self, score: str) -> int:
        """How many a score has behind the point.

        Args:
            score: Its name.
        """
        return 2 if score.endswith('PSNR') else 4

    def training_config(
        self,
        args: argparse.Namespace,
        variant: Variant,
        seed: int,
        length: Optional[int] = None,
        lr: Optional[float] = None,
    ) -> Config:
        """One training's config: the given one, with the photos and the budget asked for.

        Args:
            args: Of the command line.
            variant: The way to train.
            seed: What chance starts from.
            length: In iterations; unset, that of the command line or of the config.
            lr: Learning rate; unset, the config's.
        """
        cfg = super().training_config(args, variant, seed, length, lr)
        # No pictures of every test image.
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks if hook.type != 'BasicVisualizationHook'
        ]
        dataset = cfg.train_dataloader.dataset
        dataset.data_root = str(args.train)
        if args.size is not None:
            (crop,) = (step for step in dataset.pipeline if step.type == 'PairedRandomCrop')
            (scale,) = (step.dictionary.scale for step in dataset.pipeline if 'dictionary' in step)
            crop.gt_patch_size = scale * args.size
        loader = dict(cfg.val_dataloader, persistent_workers=False)
        cfg.val_dataloader = cfg.test_dataloader = [
            dict(loader, dataset=dict(loader['dataset'], data_root=str(path))) for path in args.test
        ]
        cfg.val_evaluator = cfg.test_evaluator = [evaluator(path.name) for path in args.test]
        return cfg

    def held_out(self, cfg: Config, folder: Path) -> Config:
        """A config that is validated on whole photos of its training set, and never tested.

        Args:
            cfg: Of a training.
            folder: Not used: the metrics read no annotations.
        """
        cfg = copy.deepcopy(cfg)
        keys = ('val_dataloader', 'val_evaluator', 'test_dataloader', 'test_evaluator')
        for key in keys:
            cfg[key] = cfg[key][0]
        # Tiles are numbered: photo_007.png.
        cfg = hold_out(cfg, folder, whole=lambda name: re.sub(r'_\d{3}\.png$', '', name))
        dataset = cfg.val_dataloader.dataset
        dataset.indices = dataset.indices[::HELD_OUT_STEP]
        cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.val_evaluator = cfg.test_evaluator = evaluator(HELD_OUT)
        for key in keys:
            cfg[key] = [cfg[key]]
        return cfg

    def references(self, args: argparse.Namespace) -> Dict[str, dict]:
        """What interpolation alone reaches on the test sets.

        Args:
            args: Of the command line.
        """
        found = {}
        for folder in args.test:
            found.update(bicubic(folder))
        return dict(bicubic=found)


def score_name(key: str) -> str:
    """A score's name in tables: ``'Set5_Y/PSNR'`` is ``'Set5 Y PSNR'``."""
    return key.replace('_Y/', ' Y ').replace('/', ' RGB ')


def evaluator(prefix: str) -> dict:
    """What measures the scores of one set of photos."""
    metrics = [
        dict(type=metric, crop_border=2, prefix=prefix + suffix, convert_to=channel)
        for suffix, channel in CHANNELS.items()
        for metric in METRICS
    ]
    return dict(type='Evaluator', metrics=metrics)


def figures(work_dir: Path) -> dict:
    """What a training reached in the end."""
    last = {key: value for line in scalars(work_dir) for key, value in line.items()}
    scores = {
        score_name(key): value
        for key, value in last.items()
        if key.count('/') == 1 and key.endswith(tuple(METRICS))
    }
    return dict(scores, classes={})


def bicubic(folder: Path) -> Dict[str, float]:
    """What interpolation alone reaches on a test set."""
    found = {}
    for suffix, channel in CHANNELS.items():
        for name, kind in METRICS.items():
            metric = kind(crop_border=2, convert_to=channel, input_order='HWC')
            metric.channel_order = 'rgb'
            values = []
            for path in sorted((folder / 'GTmod12').glob('*.png')):
                truth = Image.open(path)
                small = Image.open(folder / 'LRbicx2' / path.name)
                enlarged = small.resize(truth.size, Image.BICUBIC)
                values.append(metric.process_image(np.asarray(truth), np.asarray(enlarged), None))
            found[score_name(f'{folder.name}{suffix}/{name}')] = float(np.mean(values))
    return found


COMPARISON = SuperResolution(
    name='super_resolution',
    config='configs/super_resolution/edsr_x2_bp.py',
    local=LOCAL,
    methods=['bp', 'bp_checkpointed', 'fba'],
    scores=(),
    figures=figures,
    counted='iterations',
    scale=1,
    unit='dB',
)


def main() -> None:
    compare(COMPARISON)


if __name__ == '__main__':
    command_line.run(main)
