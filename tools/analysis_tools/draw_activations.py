r"""Where modules look: activation maps of each local module beside the image.

    python tools/analysis_tools/draw_activations.py \
        --model FBA configs/demo/retinanet_r34_fba_digits.py work_dirs/fba/epoch_10.pth \
        --model BP configs/demo/retinanet_r34_digits.py work_dirs/bp/epoch_10.pth

A map is the norm of the outputs over channels, at the end of each module. All networks are looked
at in the same layers: where the first one that was trained locally is cut, or else at the end of
each stage; ``--modules`` says otherwise. Images are of the first config's validation data.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List

from fba_mm import command_line
from fba_mm.analysis.activation_maps import activation_maps, draw_activation_maps, shown_image
from fba_mm.analysis.trained_network import TrainedNetwork, validation_samples
from fba_mm.analysis.training_profile import check_device
from fba_mm.arguments import check_count
from fba_mm.checkpoint import guard_checkpoints
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw activation maps of local modules')
    command_line.add_trained_models(
        parser, "once for each network; 'untrained' stands for one as it is initialized"
    )
    parser.add_argument('--images', type=int, default=3, help='how many images (default: 3)')
    parser.add_argument('--seed', type=int, default=0, help='of the draw of images')
    parser.add_argument(
        '--modules',
        type=command_line.module_count,
        metavar='K',
        help="where to look: at the ends of K modules; 'stages', 'blocks', or names of blocks",
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--title', default='Activation maps', help='of the picture')
    parser.add_argument('--out', default='work_dirs/activations.png', help='a PNG file')
    command_line.add_cfg_options(parser)
    return parser.parse_args()


def boxes_of(sample: Any) -> List[List[float]]:
    """The boxes of what is to be found in a validation image, in its pixels, if there are any."""
    data_sample = sample['data_samples']
    boxes = getattr(getattr(data_sample, 'gt_instances', None), 'bboxes', None)
    if boxes is None:
        return []
    boxes = getattr(boxes, 'tensor', boxes)
    # Validation pipelines load annotations last: boxes are in the file's pixels.
    scale = data_sample.get('scale_factor') or (1.0, 1.0)
    return (boxes * boxes.new_tensor([*scale[:2], *scale[:2]])).tolist()


def main() -> None:
    args = parse_args()
    check_count('--images', args.images, what='a number of images')
    check_device(args.device)
    command_line.check_writable(Path(args.out).parent, '--out')
    guard_checkpoints(args.trust_checkpoint)
    networks: Dict[str, TrainedNetwork] = {}
    for name, config, checkpoint in args.model:
        if name in networks:
            raise LocalLearningError(f'--model: two are called {name}, give each its own name')
        cfg = load_config(config)
        command_line.apply_cfg_options(cfg, args.cfg_options)
        networks[name] = TrainedNetwork.load(cfg, checkpoint, args.device, args.trust_checkpoint)
    first = next(iter(networks.values()))
    cut_like = next((one for one in networks.values() if one.is_cut), first)
    ends = cut_like.module_ends(args.modules)
    samples = validation_samples(first.cfg, args.images, args.seed)
    maps = {name: activation_maps(one, samples, ends) for name, one in networks.items()}
    kind = 'module' if cut_like.is_cut or args.modules else 'stage'
    draw_activation_maps(
        [shown_image(sample) for sample in samples],
        maps,
        args.out,
        {layer: f'{kind} {number}: {layer}' for number, layer in enumerate(ends, 1)},
        [boxes_of(sample) for sample in samples],
        args.title,
    )
    print(args.out)


if __name__ == '__main__':
    command_line.run(main)
