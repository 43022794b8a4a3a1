"""A short training, test, export and resumption, compared with those of other versions.

    python -m tests.version_matrix ROW [FOLDER]

Writes to ``FOLDER/ROW``, and reads what is there of other rows: their losses are the same to every
printed digit, training goes on from their checkpoints as from its own, and the plain toolbox loads
what they exported. FOLDER is ``work_dirs/version_matrix`` unless given.
"""
import json
import re
import shutil
import sys
from pathlib import Path

import torch

import fba_mm
from fba_mm.datasets import build_digits_on_photos

from .test_tools.in_process import run_tool, write_config

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 10


def train(config: Path, work_dir: Path, *args) -> list:
    """Losses of each iteration, as they are printed."""
    result = run_tool('train', config, '--work-dir', work_dir, *args)
    assert result.status == 0
    log = max(work_dir.glob('*/*.log')).read_text()
    return re.findall(r'Epoch\(train\) *(\[\d+\]\[ *\d+/\d+\]).* loss: ([\d.]+)(.*)', log)


def run(row: str, folder: Path) -> None:
    own = folder / row
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    data = folder / 'data'
    if not data.exists():
        build_digits_on_photos(data, num_train=10, num_val=4, image_size=64, digit_size=(12, 28))
    # Each version writes the config that it resolves: names of mmdet's modules differ.
    (data / 'fba.py').unlink(missing_ok=True)
    config = write_config(own / 'small_fba.py', data)

    losses = train(config, own / 'whole')
    assert len(losses) == ITERATIONS, losses
    (own / 'losses.json').write_text(json.dumps(losses))
    print(f'{row}: torch {torch.__version__}, {ITERATIONS} iterations',
          ' '.join(loss for _, loss, _ in losses))
    half = train(config, own / 'resumed', '--resume', own / 'whole/epoch_1.pth')
    assert half == losses[ITERATIONS // 2:], half
    checkpoint = own / 'whole/epoch_2.pth'
    assert run_tool('test', config, checkpoint, '--work-dir', own / 'test').status == 0
    assert run_tool('export', config, checkpoint, own / 'stock.pth', '--out-config',
                    own / 'stock.py').status == 0
    train(config, own / 'bf16', '--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16')
    print(f'{row}: test, export, resumption and bfloat16 work')

    for other in sorted(folder.glob('*/losses.json')):
        name = other.parent.name
        theirs = [tuple(line) for line in json.loads(other.read_text())]
        assert theirs == losses, f'{name} has other losses: {theirs}'
        half = train(config, own / f'from_{name}', '--resume', other.parent / 'whole/epoch_1.pth')
        assert half == losses[ITERATIONS // 2:], f'from {name}: {half}'
        load_stock(own / 'stock.py', other.parent / 'stock.pth')
        print(f'{row}: losses of {name} are the same, training goes on from its checkpoint, '
              'mmdet loads what it exported')


def load_stock(config: Path, exported: Path) -> None:
    """Load an exported checkpoint as MMDetection does, without this package's help."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint
    register_all_modules()
    model = MODELS.build(Config.fromfile(config).model)
    load_checkpoint(model, str(exported), map_location='cpu', strict=True)


if __name__ == '__main__':
    run(sys.argv[1], Path(*sys.argv[2:3] or [ROOT / 'work_dirs/version_matrix']).resolve())
