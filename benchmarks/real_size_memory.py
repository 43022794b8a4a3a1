"""Memory and operations of training steps at real size, predicted without computing anything.

    python benchmarks/real_size_memory.py --works retinanet_r50 fcn_r50 --ways shipped local

Configs as shipped, float32: all tensors of a step in MiB, parameters and optimizer state included,
by :func:`fba_mm.analysis.predict_memory`, and the step's operations over those of the config as
shipped. A row is printed as soon as it is there.
"""

import argparse
from functools import partial
from typing import Optional

import torch
from mmengine.config import Config, ConfigDict

from fba_mm import command_line, localize
from fba_mm.analysis import predict_memory
from fba_mm.analysis.activation_checkpointing import takes_with_cp
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import backbone_of
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import checkpointed, sliced

COCO, CITYSCAPES = (2, 3, 800, 1333), (2, 3, 512, 1024)
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
# Config, batch, depth of the backbone where it isn't the config's.
WORKS = {
    'retinanet_r50': (RETINANET, COCO, None),
    'faster_rcnn_r50': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', COCO, None),
    'fcn_r50': ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', CITYSCAPES, None),
    'mask_rcnn_r50': ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', COCO, None),
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (256, 3, 224, 224), None),
    'deit_s': ('mmpretrain::deit/deit-small_4xb256_in1k.py', (64, 3, 224, 224), None),
    'edsr': ('mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py', (16, 3, 96, 96), None),
    'retinanet_r152': (RETINANET, COCO, 152),
    'cascade_rcnn_r50': ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', COCO, None),
    'atss_r50': ('mmdet::atss/atss_r50_fpn_1x_coco.py', COCO, None),
    'upernet_r50': ('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', CITYSCAPES, None),
    'mask_rcnn_swin_t': ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', COCO, None),
    'detr_r50': ('mmdet::detr/detr_r50_8xb2-150e_coco.py', COCO, None),
}


def with_cp(cfg: Config) -> Optional[Config]:
    """With the backbone's own checkpointing; None where it has none."""
    if not takes_with_cp(cfg):
        return None
    cfg = sliced(cfg)
    backbone_of(cfg).with_cp = True
    return cfg


def least_exact(cfg: Config) -> Config:
    """Everything recomputed, image by image, and gradients applied as soon as they are there.

    All exact, unless gradients are clipped, which eager steps do by module.
    """
    cfg = checkpointed(sliced(cfg), 3, 1, head=True)
    backbone_of(cfg).head_batch_size = 1
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), ConfigDict(type='FBAHook')]
    cfg.optim_wrapper.type = 'LocalOptimWrapper'
    return cfg


def least_local(cfg: Config) -> Config:
    """The finest cut, each module recomputed image by image."""
    cfg = localize(cfg, 'blocks', recompute='blocks')
    backbone_of(cfg).recompute_batch_size = 1
    return cfg


WAYS = {
    'shipped': ('as shipped', lambda cfg: cfg),
    'with_cp': ('`with_cp=True`', with_cp),
    'checkpoint': ('`--slices --checkpoint 3`', lambda cfg: checkpointed(sliced(cfg), 3)),
    'local': ('`--local 4` (default)', partial(localize, num_modules=4)),
    'least_exact': ('exact, all recomputed', least_exact),
    'least_local': ("local, K='blocks', recomputed", least_local),
}


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory of training steps at real size')
    parser.add_argument('--works', nargs='+', choices=list(WORKS), default=list(WORKS))
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    print(f'torch {torch.__version__}')
    print('| network, batch | training | MiB | / as shipped | operations / as shipped |')
    print('|---|---|---|---|---|', flush=True)
    for work in args.works:
        name, shape, depth = WORKS[work]
        stock, first = load_config(name), None
        if depth is not None:
            backbone_of(stock).depth = depth
        for way in dict.fromkeys(['shipped', *args.ways]):
            label, configure = WAYS[way]
            try:
                with quiet():
                    cfg = configure(stock)
                if cfg is None:
                    continue
                found = predict_memory(cfg, shape)
            except LocalLearningError as error:
                print(f'| | {label} | – ({error}) | | |', flush=True)
                continue
            first = first or found
            note = '*' if found.guessed_loss else ''
            print(
                f'| {work + ", " + "×".join(map(str, shape)) if found is first else ""} | {label} '
                f'| {found.total / 2**20:,.0f}{note} | {found.total / first.total:.2f} | '
                f'{found.operations / first.operations:.2f} |',
                flush=True,
            )


if __name__ == '__main__':
    command_line.run(main)
