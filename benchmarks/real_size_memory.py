"""Memory and operations of training steps at real size, predicted without computing anything.

    python benchmarks/real_size_memory.py --works retinanet_r50 fcn_r50 --ways shipped local

Configs as shipped, float32: all tensors of a step in MiB, parameters and optimizer state included,
by :func:`fba_mm.analysis.predict_memory`, and the step's operations over those of the config as
shipped. A row is printed as soon as it is there.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import torch
from mmengine.config import Config

from fba_mm import command_line, localize
from fba_mm.analysis import predict_memory
from fba_mm.analysis.activation_checkpointing import takes_with_cp
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import backbone_of
from fba_mm.analysis.synthetic_batch import batch_shape
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import accumulated, checkpointed, image_by_image, sliced

COCO, CITYSCAPES = (2, 3, 800, 1333), (2, 3, 512, 1024)
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
SCRATCH = dict(
    frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='BN', requires_grad=True), init_cfg=None
)
# Config, batch, settings of the backbone.
WORKS: Dict[str, Tuple[str, tuple, dict]] = {
    'retinanet_r50': (RETINANET, COCO, {}),
    'faster_rcnn_r50': (FASTER_RCNN, COCO, {}),
    'fcn_r50': ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', CITYSCAPES, {}),
    'mask_rcnn_r50': (MASK_RCNN, COCO, {}),
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (256, 3, 224, 224), {}),
    'deit_s': ('mmpretrain::deit/deit-small_4xb256_in1k.py', (64, 3, 224, 224), {}),
    'edsr': ('mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py', (16, 3, 96, 96), {}),
    'retinanet_r152': (RETINANET, COCO, dict(depth=152)),
    'cascade_rcnn_r50': ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', COCO, {}),
    'atss_r50': ('mmdet::atss/atss_r50_fpn_1x_coco.py', COCO, {}),
    'upernet_r50': ('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', CITYSCAPES, {}),
    'mask_rcnn_swin_t': ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', COCO, {}),
    'detr_r50': ('mmdet::detr/detr_r50_8xb2-150e_coco.py', COCO, {}),
    'retinanet_r50, from scratch': (RETINANET, COCO, SCRATCH),
    'retinanet_r152, from scratch': (RETINANET, COCO, dict(SCRATCH, depth=152)),
    'faster_rcnn_r50, from scratch': (FASTER_RCNN, COCO, SCRATCH),
    'mask_rcnn_r50, from scratch': (MASK_RCNN, COCO, SCRATCH),
}


def with_cp(cfg: Config) -> Optional[Config]:
    """With the backbone's own checkpointing; None where it has none."""
    if not takes_with_cp(cfg):
        return None
    cfg = sliced(cfg)
    backbone_of(cfg).with_cp = True
    return cfg


def least_local(cfg: Config) -> Config:
    """Four modules, each recomputed, image by image where a batch has few."""
    few = batch_shape(cfg)[0] <= 8
    cfg = localize(cfg, 4, recompute='blocks')
    if few:
        backbone_of(cfg).recompute_batch_size = 1
    return cfg


WAYS: Dict[str, Tuple[str, Callable[[Config], Optional[Config]]]] = {
    'shipped': ('as it is', lambda cfg: cfg),
    'with_cp': ('`with_cp=True`', with_cp),
    'checkpoint': ('`--slices --checkpoint 3`', lambda cfg: checkpointed(sliced(cfg), 3)),
    'least_exact': (
        'neck and head recomputed, too, image by image',
        partial(image_by_image, head=True),
    ),
    'accumulation': ('accumulation, 1 image', lambda cfg: accumulated(sliced(cfg), 1)),
    'both': (
        'accumulation, 1 image, and 3 spans',
        lambda cfg: accumulated(checkpointed(sliced(cfg), 3), 1),
    ),
    'both_head': (
        'accumulation, 1 image, 3 spans, neck and head',
        lambda cfg: accumulated(checkpointed(sliced(cfg), 3, head=True), 1),
    ),
    'local': ('`--local 4`', partial(localize, num_modules=4)),
    'least_local': ('`--local 4`, recomputed', least_local),
}


def simulate(work: str, way: str) -> Dict[str, object]:
    """What a way to train takes; a reason where it can't be."""
    name, shape, settings = WORKS[work]
    stock = load_config(name)
    backbone_of(stock).update(settings)
    try:
        with quiet():
            cfg = WAYS[way][1](stock)
        if cfg is None:
            return dict(reason='the backbone has none')
        found = predict_memory(cfg, shape)
    except LocalLearningError as error:
        return dict(reason=str(error))
    return dict(total=found.total, operations=found.operations, guessed=found.guessed_loss)


def cell(one: Dict[str, object], shipped: Dict[str, object]) -> str:
    """One cell of the table."""
    if 'reason' in one:
        return '–'
    text = f'{one["total"] / 2**20:,.0f}{"*" * one["guessed"]}'
    return text if one is shipped else f'{text} ({one["operations"] / shipped["operations"]:.2f})'


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory of training steps at real size')
    parser.add_argument('--works', nargs='+', choices=list(WORKS), default=list(WORKS))
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/real_size_memory.json'), help='what is found'
    )
    args = parser.parse_args()
    command_line.check_writable(args.out.parent, '--out')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    ways = list(dict.fromkeys(['shipped', *args.ways]))
    print(f'torch {torch.__version__}')
    print(f'| network, batch | {" | ".join(WAYS[way][0] for way in ways)} |')
    print('|---' * (len(ways) + 1) + '|', flush=True)
    for work in args.works:
        rows = found.setdefault(work, {})
        for way in ways:
            if way not in rows:
                rows[way] = simulate(work, way)
                args.out.write_text(json.dumps(found, indent=1))
        cells = ' | '.join(cell(rows[way], rows['shipped']) for way in ways)
        print(f'| {work}, {"×".join(map(str, WORKS[work][1]))} | {cells} |', flush=True)


if __name__ == '__main__':
    command_line.run(main)
