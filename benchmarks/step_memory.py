"""Peak memory and time of a training step: BP, activation checkpointing, FBA with light heads.

    python benchmarks/step_memory.py [--rounds 5] [--works retinanet_r50 mask_rcnn_r50 ...]

float32, random images and boxes or labels, batch norm trained, nothing frozen, no weights loaded.
All ways to train use the same sliced focal loss, so that only the method differs. Peak: live
tensors above parameters, buffers and optimizer state (the allocator's on CUDA). Time: median over
rounds in which the ways take turns.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from fba_mm import localize
from fba_mm.analysis.training_profile import profile_training
from fba_mm.config import load_config

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
# Config, depth, numbers of modules.
WORKS = {
    'retinanet_r50': (RETINANET, 50, (4, 'blocks')),
    'retinanet_r101': (RETINANET, 101, (4, 'blocks')),
    'retinanet_r152': (RETINANET, 152, (4, 'blocks')),
    'mask_rcnn_r50': (MASK_RCNN, 50, (4,)),
    'fcn_r50': (FCN, 50, (4, 'blocks')),
}


def from_scratch(name: str, depth: int) -> Config:
    """The stock config with nothing frozen, nothing downloaded, and the sliced focal loss."""
    cfg = load_config(name)
    cfg.model.pop('pretrained', None)  # mmseg's name for it.
    cfg.model.backbone.update(
        depth=depth,
        init_cfg=None,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
    )
    head = cfg.model.get('bbox_head')
    if head is not None:
        head.loss_cls.type = 'SlicedFocalLoss'
    return cfg


def variants(work: str, with_shared: bool) -> dict:
    """Name → config of the local ways; their baselines are made from the first."""
    name, depth, numbers = WORKS[work]
    stock = from_scratch(name, depth)
    found = {f'FBA K={k}, light heads': localize(stock, k, auxiliary='light') for k in numbers}
    checkpointed = from_scratch(name, depth)
    checkpointed.model.backbone.with_cp = True
    found['FBA K=4, light heads, checkpointing'] = localize(checkpointed, 4, auxiliary='light')
    if with_shared:
        found['FBA K=4, pooled, shared head'] = localize(stock, 4, auxiliary='pooled')
        found['FBA K=4, SLM, shared head'] = localize(stock, 4, auxiliary='shared')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory and time of a training step')
    parser.add_argument('--works', nargs='+', choices=list(WORKS), default=list(WORKS))
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--size', type=int, nargs='+', default=[320], help='height, width')
    parser.add_argument('--rounds', type=int, default=5, help='0 measures memory alone')
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--shared',
        action='store_true',
        help='also FBA with the shared head, with and without SLM blocks',
    )
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()
    shape = (args.batch, 3, args.size[0], args.size[-1])
    console, figures = Console(), {}
    for work in args.works:
        local = variants(work, args.shared)
        first, *others = local.values()
        profiles = profile_training(
            first, shape, ['bp', 'checkpointing'], args.device, args.rounds, console.print, others
        )
        names = [list(local)[0], 'BP', 'BP, checkpointing', *list(local)[1:]]
        peaks = {n: p.memory.peak_bytes / 2**20 for n, p in zip(names, profiles)}
        times = {
            n: statistics.median(p.seconds) if p.seconds else float('nan')
            for n, p in zip(names, profiles)
        }
        table = Table(
            title=f'{work}, {"×".join(map(str, shape))}, torch {torch.__version__}, '
            f'{args.device}, {torch.get_num_threads()} threads'
        )
        for column in ('training', 'peak MiB', '/ BP', '/ checkpointing', 's', '/ BP'):
            table.add_column(column, justify='left' if column == 'training' else 'right')
        for name in ('BP', 'BP, checkpointing', *local):
            table.add_row(
                name,
                f'{peaks[name]:.1f}',
                f'{peaks[name] / peaks["BP"]:.3f}',
                f'{peaks[name] / peaks["BP, checkpointing"]:.3f}',
                f'{times[name]:.2f}',
                f'{times[name] / times["BP"]:.2f}',
            )
        console.print(table)
        figures[work] = dict(shape=shape, peak_mib=peaks, seconds=times)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main()
