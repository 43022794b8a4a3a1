r"""How alike the layers of trained networks are: centered kernel alignment (CKA), layer by layer.

    python tools/analysis_tools/plot_cka.py \
        --model BP configs/classification/digits/resnet32_bp.py work_dirs/bp/epoch_8.pth \
        --model FBA configs/classification/digits/resnet32_fba.py work_dirs/fba/epoch_8.pth \
        --model untrained configs/classification/digits/resnet32_bp.py untrained

Each network is compared with the first one, on validation images of the first config, in
mini-batches (Nguyen et al. 2021). The same name given twice stands for two trainings, which are
averaged; two of the first name show how alike trainings are that differ in their seed alone. The
picture has a heat map of each comparison, and curves over depth; the numbers are written beside it.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Dict, List

from rich.console import Console
from rich.progress import track

from fba_mm import command_line
from fba_mm.analysis.cka import LEAST_IMAGES
from fba_mm.analysis.layer_similarity import compare_networks
from fba_mm.analysis.layer_similarity_plot import draw_layer_similarity
from fba_mm.analysis.trained_network import TrainedNetwork, validation_samples
from fba_mm.analysis.training_profile import check_device
from fba_mm.arguments import check_count
from fba_mm.checkpoint import guard_checkpoints
from fba_mm.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Similarity of networks, layer by layer (CKA)')
    command_line.add_trained_models(
        parser, "once for each checkpoint; 'untrained' stands for a network as it is initialized"
    )
    parser.add_argument(
        '--images', type=int, default=512, help='validation images (default: 512, if there are)'
    )
    parser.add_argument(
        '--batch', type=int, default=64, help='images of a mini-batch (default: 64, at least 4)'
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--title', help='of the picture')
    parser.add_argument(
        '--out', default='work_dirs/cka.png', help='a PNG file; the numbers go to a .json beside it'
    )
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_count('--images', args.images, least=LEAST_IMAGES, what='a number of images')
    check_count('--batch', args.batch, least=LEAST_IMAGES, what='a number of images')
    check_device(args.device)
    out = Path(args.out)
    command_line.check_writable(out.parent, '--out')
    guard_checkpoints(args.trust_checkpoint)
    networks: Dict[str, List[TrainedNetwork]] = {}
    for name, config, checkpoint in args.model:
        cfg = load_config(config)
        command_line.apply_cfg_options(cfg, args.cfg_options)
        of_name = networks.setdefault(name, [])
        of_name.append(
            TrainedNetwork.load(cfg, checkpoint, args.device, args.trust_checkpoint, len(of_name))
        )
    first = next(iter(networks.values()))[0]
    samples = validation_samples(first.cfg, args.images)
    batch = min(args.batch, len(samples))
    console = Console()
    shown = partial(track, description='batches', console=console)
    similarities = compare_networks(networks, samples, batch, shown)
    used = len(samples) // batch * batch
    title = args.title or f'Similarity of layers (CKA) on {used} validation images'
    draw_layer_similarity(similarities, out, title)
    numbers = dict(images=used, batch=batch, comparisons=[one.to_dict() for one in similarities])
    out.with_suffix('.json').write_text(json.dumps(numbers, indent=1) + '\n')
    for one in similarities:
        mean = one.same_layer if one.are_aligned else one.averaged
        what = 'of the same layer' if one.are_aligned else 'averaged over all layers'
        values = mean.mean(0)
        console.print(
            f'{one.first} and {one.second}: CKA {what} {values[0]:.2f} in the first, '
            f'{values[len(values) // 2]:.2f} in the middle, {values[-1]:.2f} in the last',
            soft_wrap=True,
        )
    console.print(f'{out}\n{out.with_suffix(".json")}', soft_wrap=True)


if __name__ == '__main__':
    command_line.run(main)
