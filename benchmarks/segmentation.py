r"""Ways to train a segmentor side by side on one data set.

    python tools/dataset_converters/build_digits.py data/digit_masks --train 800 --size 96 \
        --digits 4 8 --digit-size 28 48 --masks                   # nothing to download
    python benchmarks/segmentation.py --search --seeds 0 1 2 --equal-time

Trains a config of back-propagation in every way with every seed, as ``compared_trainings.py`` says.
The table has mIoU and accuracies, time, operations and peak memory of a step.
"""

from pathlib import Path
from typing import Dict

from compared_trainings import Comparison, compare
from mmengine.config import Config
from seeded_trainings import scalars

from fba_mm import command_line, localize


def light(cfg: Config, **settings) -> dict:
    """An auxiliary network with a light head that differs from the default's."""
    auxiliary = localize(cfg, auxiliary='light').model.backbone.auxiliary
    return dict(auxiliary, head=dict(auxiliary.head, **settings))


# Of local learning: name in tables, and what localize() is told.
LOCAL: Dict[str, tuple] = {
    'fba_light': ('FBA, light heads', lambda cfg: dict(auxiliary='light')),
    # What a step takes is that of its local phase.
    'fba_light_exact_end': (
        'FBA, light heads, exact from 0.7 on',
        lambda cfg: dict(auxiliary='light', exact_from=0.7),
    ),
    'fba_light_all_maps': (
        'FBA, light heads, all maps',
        lambda cfg: dict(auxiliary=light(cfg, in_index=[0, 1, 2, 3])),
    ),
    'fba_light_wide': (
        'FBA, light heads, 128 channels',
        lambda cfg: dict(auxiliary=light(cfg, channels=128)),
    ),
    'fba_own': ('FBA, own heads', lambda cfg: dict(auxiliary='own')),
    'fba_shared': ('FBA, shared head', lambda cfg: dict(auxiliary='shared')),
}


def figures(work_dir: Path) -> dict:
    """What a training reached, as shares."""
    last: Dict[str, float] = {}
    for line in scalars(work_dir):
        last.update({key: value / 100 for key, value in line.items() if key in COMPARISON.scores})
    return dict(last, classes={})


COMPARISON = Comparison(
    name='segmentation',
    config='configs/segmentation/digits/fcn_r18_bp.py',
    local=LOCAL,
    methods=['bp', 'bp_checkpointed', 'fba_light', 'fba_own'],
    scores=('mIoU', 'mAcc', 'aAcc'),
    figures=figures,
)


def main() -> None:
    compare(COMPARISON)


if __name__ == '__main__':
    command_line.run(main)
