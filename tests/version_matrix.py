"""A short training, test, export and resumption, compared with those of other versions.

    python -m tests.version_matrix ROW [--folder FOLDER]
    python -m tests.version_matrix ROW --read    # what others have written since, nothing else

Writes to ``FOLDER/ROW``, and reads what is there of other rows: their losses are the same up to one
in the last printed digit, training goes on from their checkpoints as from its own, and the plain
toolbox loads what they exported. FOLDER is ``work_dirs/version_matrix`` unless given.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

from fba_mm.datasets import build_digits_on_photos

from .test_tools.in_process import run_tool, write_config

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 10


def train(config: Path, work_dir: Path, *args) -> list:
    """Losses of each iteration, as they are printed."""
    result = run_tool('train', config, '--work-dir', work_dir, *args)
    assert result.status == 0
    log = max(work_dir.glob('*/*.log')).read_text()
    lines = re.findall(r'Epoch\(train\) *(\[\d+\]\[ *\d+/\d+\]).*  (loss: .*)', log)
    return [
        (where, [float(loss) for loss in re.findall(r'loss\w*: ([\d.]+)', losses)])
        for where, losses in lines
    ]


def assert_close(theirs: list, losses: list, name: str) -> int:
    """Refuse losses that differ by more than one in the last digit; how many differ at all."""
    pairs = [(a, b) for (_, line), (_, own) in zip(theirs, losses) for a, b in zip(line, own)]
    assert len(theirs) == len(losses) and all(abs(a - b) < 1.5e-4 for a, b in pairs), (
        f'{name} has other losses: {theirs} instead of {losses}'
    )
    return sum(a != b for a, b in pairs)


def write(row: str, folder: Path) -> None:
    """Train, test, export and resume, and write losses and checkpoints."""
    own = folder / row
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    data = folder / 'data'
    if not data.exists():
        build_digits_on_photos(data, num_train=10, num_val=4, image_size=64, digit_size=(12, 28))
    # A folder of its own, for the config that each version resolves: names in mmdet's differ.
    data = shutil.copytree(data, own / 'data')
    # At a low learning rate, differences in rounding stay differences in rounding.
    config = write_config(
        own / 'small_fba.py', data, 'optim_wrapper = dict(optimizer=dict(lr=1e-4))'
    )

    losses = train(config, own / 'whole')
    assert len(losses) == ITERATIONS, losses
    (own / 'losses.json').write_text(json.dumps(losses))
    print(
        f'{row}: torch {torch.__version__}, {ITERATIONS} iterations',
        ' '.join(f'{values[0]:.4f}' for _, values in losses),
    )
    half = train(config, own / 'resumed', '--resume', own / 'whole/epoch_1.pth')
    assert half == losses[ITERATIONS // 2 :], half
    checkpoint = own / 'whole/epoch_2.pth'
    assert run_tool('test', config, checkpoint, '--work-dir', own / 'test').status == 0
    assert (
        run_tool(
            'export', config, checkpoint, own / 'stock.pth', '--out-config', own / 'stock.py'
        ).status
        == 0
    )
    train(config, own / 'bf16', '--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16')
    print(f'{row}: test, export, resumption and bfloat16 work')


def read(row: str, folder: Path) -> None:
    """Compare with all that lies there, and go on from it."""
    own = folder / row
    config = own / 'small_fba.py'
    losses = json.loads((own / 'losses.json').read_text())
    for other in sorted(folder.glob('*/losses.json')):
        name = other.parent.name
        shutil.rmtree(own / f'from_{name}', ignore_errors=True)
        differ = assert_close(json.loads(other.read_text()), losses, name)
        half = train(config, own / f'from_{name}', '--resume', other.parent / 'whole/epoch_1.pth')
        assert_close(half, losses[ITERATIONS // 2 :], f'from {name}')
        load_stock(own / 'stock.py', other.parent / 'stock.pth')
        count = len(losses) * len(losses[0][1])
        print(
            f'{row}: {count - differ} of {count} losses are those of {name} to the last digit; '
            'training goes on from its checkpoint; mmdet loads what it exported'
        )


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('row')
    parser.add_argument('--folder', type=Path, default=ROOT / 'work_dirs/version_matrix')
    parser.add_argument('--read', action='store_true', help='what others have written since')
    args = parser.parse_args()
    if not args.read:
        write(args.row, args.folder.resolve())
    read(args.row, args.folder.resolve())
