"""Simulated training steps against real ones: memory, and operations against the clock.

    python benchmarks/planning.py [--works retinanet_r50 edsr ...] [--rounds 3]

Configs as shipped, in sizes that a small machine can do, from scratch, on the CPU. Memory: tensors
of the second step, parameters and optimizer state included. Time: processor time over that of the
config as shipped, the ways by turns; 0 rounds leave it out.
"""

import argparse
import gc
import statistics
import time
from functools import partial

import torch
from mmengine.config import Config

from fba_mm import localize
from fba_mm.analysis import TrainingStep, measure_step, predict_memory, resident_bytes
from fba_mm.analysis.simulated_step import quiet
from fba_mm.analysis.step_configs import from_scratch
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import checkpointed, sliced

MIB = 2**20
DETECTION, SEGMENTATION, CLASSIFICATION = (2, 3, 320, 320), (2, 3, 128, 256), (4, 3, 224, 224)
WORKS = {
    'retinanet_r50': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', DETECTION),
    'faster_rcnn_r50': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', DETECTION),
    'mask_rcnn_r50': ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', DETECTION),
    'cascade_rcnn_r50': ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', DETECTION),
    'cascade_mask_rcnn_r50': (
        'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        DETECTION,
    ),
    'atss_r50': ('mmdet::atss/atss_r50_fpn_1x_coco.py', DETECTION),
    'detr_r50': ('mmdet::detr/detr_r50_8xb2-150e_coco.py', DETECTION),
    'deformable_detr_r50': (
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        DETECTION,
    ),
    'mask_rcnn_swin_t': ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', DETECTION),
    'fcn_r50': ('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', SEGMENTATION),
    'upernet_r50': ('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', SEGMENTATION),
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', CLASSIFICATION),
    'deit_s': ('mmpretrain::deit/deit-small_4xb256_in1k.py', CLASSIFICATION),
    'edsr': ('mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py', (2, 3, 48, 48)),
}
WAYS = {
    'as shipped': lambda cfg: cfg,
    'losses in slices, checkpointing, 3 spans': lambda cfg: checkpointed(sliced(cfg), 3),
    'local, K=4': partial(localize, num_modules=4),
}


def real_step(cfg: Config, shape: tuple) -> tuple:
    """A step that has been made once, ready to be made again, and the bytes that it takes."""
    with quiet():
        step = TrainingStep(from_scratch(cfg))
        step.model.init_weights()
        data = synthetic_batch(step.model, shape)
        step(data)
    gc.collect()
    sizes = resident_bytes(step.model, step.optim_wrapper.optimizer)
    run = partial(step, data)
    return run, sizes['parameters'] + sizes['optimizer_state'] + measure_step(run).peak_bytes


def processor_seconds(run: partial) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description='Simulated training steps against real ones')
    parser.add_argument('--works', nargs='+', choices=list(WORKS), default=list(WORKS))
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), default=list(WAYS))
    parser.add_argument('--rounds', type=int, default=3, help='0 measures memory alone')
    args = parser.parse_args()
    ways = list(dict.fromkeys(['as shipped', *args.ways]))
    print(f'torch {torch.__version__}')
    columns = 'network', 'way', 'measured MiB', 'predicted MiB', 'error %'
    timed = ('seconds', 'GFLOP', 'GB moved', 'time', 'counted') if args.rounds else ()
    print(f'| {" | ".join((*columns, *timed))} |')
    print('|---' * len((*columns, *timed)) + '|', flush=True)
    for work in args.works:
        name, shape = WORKS[work]
        cfg = load_config(name)
        predicted, runs, taken = {}, {}, {}
        for way in ways:
            try:
                with quiet():
                    changed = WAYS[way](cfg)
                predicted[way] = predict_memory(changed, shape)
            except LocalLearningError as error:
                print(f'{work}, {way}: {error}')
                continue
            run, taken[way] = real_step(changed, shape)
            if args.rounds:
                runs[way] = run
            del run
        seconds = {way: [] for way in runs}
        for _ in range(args.rounds):
            for way, run in runs.items():
                seconds[way].append(processor_seconds(run))
        stock = predicted['as shipped'].operations
        medians = {way: statistics.median(found) for way, found in seconds.items() if found}
        for way, found in predicted.items():
            cells = [
                work,
                way,
                f'{taken[way] / MIB:,.1f}',
                f'{found.total / MIB:,.1f}',
                f'{(found.total / taken[way] - 1) * 100:.2f}',
            ]
            if medians:
                cells += [
                    f'{medians[way]:.3f}',
                    f'{found.flops / 1e9:,.1f}',
                    f'{found.bytes_moved / 1e9:,.2f}',
                    f'{medians[way] / medians["as shipped"]:.2f}',
                    f'{found.operations / stock:.2f}',
                ]
            print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
