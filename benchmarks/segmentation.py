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
from seeded_trainings import scalars

from fba_mm import command_line

# Of local learning: name in tables, and what localize() is told.
LOCAL: Dict[str, tuple] = {
    'fba_light': ('FBA, light heads', lambda cfg: dict(auxiliary='light')),
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
