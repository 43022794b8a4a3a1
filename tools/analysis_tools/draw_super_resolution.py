r"""Draw what trained models make of test pictures, beside bicubic interpolation and the truth.

    python tools/analysis_tools/draw_super_resolution.py --out compare.png \
        --model BP configs/super_resolution/edsr_x2_bp.py bp/iter_1000.pth \
        --model FBA configs/super_resolution/edsr_x2_fba.py fba/iter_1000.pth

The pictures are those of the first config's first test set, or of ``--data``, a folder with
``GTmod12`` and ``LRbicx<scale>``.
"""

import argparse
from pathlib import Path

import numpy as np
from mmengine.runner import load_checkpoint
from PIL import Image

from fba_mm import command_line
from fba_mm.analysis.super_resolution_plot import draw_super_resolution, enlarge
from fba_mm.checkpoint import check_fit, guard_checkpoints
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.preflight.building import build_model
from fba_mm.preflight.image_pairs import scale_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw super-resolution side by side')
    parser.add_argument(
        '--model',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='once for each model',
    )
    parser.add_argument('--data', type=Path, help="default: the first config's first test set")
    parser.add_argument('--images', nargs='+', metavar='NAME', help='default: the first four')
    parser.add_argument('--crop', type=int, default=48, help='side of the enlarged square in px')
    parser.add_argument('--out', default='work_dirs/super_resolution.png', help='a PNG file')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='load a checkpoint that can run code'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.crop < 1:
        raise LocalLearningError(f'--crop {args.crop}: give a number of pixels from 1')
    command_line.check_writable(Path(args.out).parent, '--out')
    guard_checkpoints(args.trust_checkpoint)
    cfgs = {name: load_config(config) for name, config, _ in args.model}
    if len(cfgs) < len(args.model):
        raise LocalLearningError('--model: two have the same name, give each its own')
    scales = {scale_of(cfg.model.get('generator') or {}) for cfg in cfgs.values()}
    if len(scales) > 1 or None in scales:
        raise LocalLearningError(
            '--model: give configs of networks that enlarge, all by the same scale'
        )
    (scale,) = scales
    truths, lows = folders(args, next(iter(cfgs.values())), scale)
    models = {}
    for name, _, checkpoint in args.model:
        model = build_model(cfgs[name])
        check_fit(model, checkpoint, 'test', args.trust_checkpoint)
        load_checkpoint(model, checkpoint, map_location='cpu')
        models[name] = model
    files = sorted(path.name for path in truths.glob('*.png'))
    names = args.images or [Path(file).stem for file in files[:4]]
    missing = [name for name in names if f'{name}.png' not in files]
    if missing:
        raise LocalLearningError(
            f'--images {missing[0]}: {truths} has {", ".join(Path(f).stem for f in files[:8])}'
        )
    rows = []
    for name in names:
        low, truth = (
            np.asarray(Image.open(folder / f'{name}.png').convert('RGB'))
            for folder in (lows, truths)
        )
        made = {key: enlarge(model, low) for key, model in models.items()}
        rows.append(dict(low=low, truth=truth, **made))
    draw_super_resolution(rows, args.out, scale, names, args.crop)
    print(args.out)


def folders(args: argparse.Namespace, cfg, scale: int):
    """Where high and low resolution lie."""
    if args.data is not None:
        truths, lows = args.data / 'GTmod12', args.data / f'LRbicx{scale}'
    else:
        loaders = cfg.test_dataloader
        dataset = (loaders[0] if isinstance(loaders, (list, tuple)) else loaders).dataset
        root = Path(dataset.data_root)
        truths, lows = root / dataset.data_prefix.gt, root / dataset.data_prefix.img
    for folder in (truths, lows):
        if not folder.is_dir():
            raise LocalLearningError(
                f'{folder} does not exist: give --data FOLDER, as '
                'tools/dataset_converters/build_photo_pairs.py builds it'
            )
    return truths, lows


if __name__ == '__main__':
    command_line.run(main)
