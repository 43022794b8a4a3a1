r"""Draw what trained models make of test pictures, beside bicubic interpolation and the truth.

    python tools/analysis_tools/draw_super_resolution.py --out compare.png \
        --model BP configs/super_resolution/edsr_x2_bp.py bp/iter_1000.pth \
        --model FBA configs/super_resolution/edsr_x2_fba.py fba/iter_1000.pth

The pictures are those of the first config's first test set, or of ``--data``, a folder with
``GTmod12`` and ``LRbicx<scale>``.
"""

import argparse
import os
from pathlib import Path
from typing import Dict, Sequence, Tuple, Union

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fba_mm import command_line
from fba_mm.arguments import check_count
from fba_mm.checkpoint import check_fit, guard_checkpoints
from fba_mm.config import load_config
from fba_mm.datasets.image_pairs import scale_of
from fba_mm.errors import LocalLearningError
from fba_mm.preflight.building import build_model

_INK = '#D55E00'


def enlarge(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """What a model of mmagic makes of one picture.

    Args:
        model: A ``BaseEditModel``; it is put in evaluation mode.
        image: Low resolution, (H, W, 3), RGB of 0 to 255.

    Returns:
        (scale * H, scale * W, 3), uint8.
    """
    from mmagic.structures import DataSample

    inputs = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    data = dict(inputs=[inputs], data_samples=[DataSample()])
    model.eval()
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmagic'):
        output = model.test_step(data)[0].output.pred_img
    return _as_image(output)


def _as_image(image: Tensor) -> np.ndarray:
    return image.float().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def psnr_on_luma(image: np.ndarray, truth: np.ndarray, crop_border: int) -> float:
    """PSNR on the Y channel in dB, as super-resolution papers report it.

    Args:
        image: (H, W, 3), RGB of 0 to 255.
        truth: The same.
        crop_border: Pixels at each side that don't count.
    """
    from mmagic.evaluation.metrics.psnr import psnr

    return float(psnr(truth, image, crop_border, 'HWC', 'Y', channel_order='rgb'))


def hardest_place(image: np.ndarray, truth: np.ndarray, size: int) -> Tuple[int, int]:
    """Where a square of a picture differs most from the truth.

    Args:
        image: (H, W, 3).
        truth: The same.
        size: Side of the square in px.

    Returns:
        The upper left corner, x and y.
    """
    error = torch.from_numpy(np.square(image.astype(np.float64) - truth).mean(-1))
    means = F.avg_pool2d(error[None], size, stride=1)[0]
    y, x = np.unravel_index(int(means.argmax()), means.shape)
    return int(x), int(y)


def draw_super_resolution(
    rows: Sequence[Dict[str, np.ndarray]],
    out_file: Union[str, 'os.PathLike[str]'],
    scale: int,
    names: Sequence[str],
    crop: int = 48,
) -> Figure:
    """Draw, for each picture, its low resolution, bicubic interpolation, models and the truth.

    The square in which bicubic interpolation is worst is enlarged, with PSNR (Y) of the whole
    picture below.

    Args:
        rows: For each picture a dict: ``'low'``, (H, W, 3), ``'truth'``, (scale * H, scale * W, 3),
            and what each model made of it, by the model's name.
        out_file: A PNG file; missing folders are made.
        scale: How many times a picture is enlarged.
        names: Of the pictures.
        crop: Side of the square in px of high resolution.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: There is no picture, or one is smaller than the square.
    """
    if not rows:
        raise LocalLearningError('no picture to draw: give a test set that has some')
    columns = len(rows[0]) + 2
    figure = Figure(figsize=(2.1 * columns, 2.55 * len(rows) + 0.3), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, row, name in zip(grid, rows, names):
        row = dict(row)
        low, truth = row.pop('low'), row.pop('truth')
        if min(truth.shape[:2]) < crop:
            raise LocalLearningError(
                f'{name} has {truth.shape[0]}x{truth.shape[1]} px, less than the square of {crop}: '
                'give a smaller one'
            )
        size = truth.shape[1], truth.shape[0]
        bicubic = np.asarray(Image.fromarray(low).resize(size, Image.BICUBIC))
        x, y = hardest_place(bicubic, truth, crop)
        pixels = np.asarray(Image.fromarray(low).resize(size, Image.NEAREST))
        shown = {'low resolution': pixels, 'bicubic': bicubic, **row, 'ground truth': truth}
        axes_of_row[0].imshow(truth)
        axes_of_row[0].add_patch(
            Rectangle((x, y), crop, crop, fill=False, edgecolor=_INK, linewidth=1.5)
        )
        axes_of_row[0].set_title(name, fontsize=10)
        for axes, (title, image) in zip(axes_of_row[1:], shown.items()):
            axes.imshow(image[y : y + crop, x : x + crop], interpolation='nearest')
            axes.set_title(title, fontsize=10)
            if title not in ('low resolution', 'ground truth'):
                axes.set_xlabel(f'{psnr_on_luma(image, truth, scale):.2f} dB', fontsize=9)
        for axes in axes_of_row:
            axes.set(xticks=[], yticks=[])
    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw super-resolution side by side')
    command_line.add_trained_models(parser, 'once for each model')
    parser.add_argument('--data', type=Path, help="default: the first config's first test set")
    parser.add_argument('--images', nargs='+', metavar='NAME', help='default: the first four')
    parser.add_argument('--crop', type=int, default=48, help='side of the enlarged square in px')
    parser.add_argument('--out', default='work_dirs/super_resolution.png', help='a PNG file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_count('--crop', args.crop, what='a number of pixels')
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
