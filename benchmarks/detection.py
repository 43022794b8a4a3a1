r"""Ways to train a detector side by side on one data set.

    python tools/dataset_converters/build_digits.py               # nothing to download
    python benchmarks/detection.py
    python benchmarks/detection.py --config benchmarks/configs/retinanet_r18_bccd.py --search \
        --methods bp bp_checkpointed fba_light fba --seeds 0 1 2 --equal-time
    python benchmarks/detection.py --methods bp fba --modules 4 8 16 blocks      # over K

Trains a config of back-propagation in every way with every seed, as ``compared_trainings.py`` says.
The table has mAP and AP of each class, as the FBA paper's Table 2, time, operations and peak memory
of a step.
"""

from pathlib import Path
from typing import Dict

from compared_trainings import Comparison, compare
from mmengine.config import Config
from seeded_trainings import scalars

from fba_mm import command_line, localize


def own_head(cfg: Config) -> dict:
    """A copy of a model's neck and head, as an auxiliary network has it."""
    return localize(cfg, auxiliary='own').model.backbone.auxiliary.head


def light(cfg: Config, kind: str = 'SLM', **settings) -> dict:
    """An auxiliary network with a light head."""
    head = localize(cfg, auxiliary='light').model.backbone.auxiliary.head
    return dict(type=kind, head=head, **settings)


# Of local learning: name in tables, and what localize() is told.
LOCAL: Dict[str, tuple] = {
    'fba_light': ('FBA, light heads', lambda cfg: dict(auxiliary=light(cfg))),
    'fba_light_pooled': (
        'FBA, light heads, no blocks',
        lambda cfg: dict(auxiliary=light(cfg, blocks_per_stage=0)),
    ),
    'fba_stage_tail': (
        'FBA, stage tail, light heads',
        lambda cfg: dict(auxiliary=light(cfg, 'StageTail'), scope='all'),
    ),
    'fba': ('FBA, shared head', lambda cfg: dict(auxiliary='pooled')),
    'fba_slm': ('FBA, shared head, SLM', lambda cfg: dict(auxiliary='shared')),
    'fba_own': ('FBA, own heads', lambda cfg: dict(auxiliary='own')),
    'fba_bank_off': (
        'FBA, shared head, no bank',
        lambda cfg: dict(auxiliary='pooled', scope='off'),
    ),
    'fba_bank_all': (
        'FBA, shared head, bank of all',
        lambda cfg: dict(auxiliary='pooled', scope='all'),
    ),
    'dgl': (
        'DGL + FPN',
        lambda cfg: dict(auxiliary=dict(type='DGLFPN', head=own_head(cfg)), scope='off'),
    ),
}


def figures(work_dir: Path) -> dict:
    """What a training reached."""
    logged = scalars(work_dir)
    last = {
        key.partition('/')[2]: value
        for line in logged
        for key, value in line.items()
        if key.startswith(('coco/', 'pascal_voc/'))
    }
    classes = {
        name.rpartition('_')[0]: value
        for name, value in last.items()
        if name.endswith(('_precision', '_AP'))
    }
    # Of a detector that finds nothing at all, mmdet reports nothing.
    nothing = None if last else 0.0
    return dict(
        mAP=last.get('bbox_mAP', last.get('mAP', nothing)),
        AP50=last.get('bbox_mAP_50', last.get('AP50', nothing)),
        AP75=last.get('bbox_mAP_75', nothing),
        classes=classes,
    )


COMPARISON = Comparison(
    name='detection',
    config='configs/demo/retinanet_r34_digits.py',
    local=LOCAL,
    methods=['bp', 'bp_checkpointed', 'fba_light', 'fba', 'dgl'],
    scores=('mAP', 'AP50', 'AP75'),
    figures=figures,
    of_each_class='AP of each class',
)


def main() -> None:
    compare(COMPARISON)


if __name__ == '__main__':
    command_line.run(main)
