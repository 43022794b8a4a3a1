"""Mutations of valid configs of all tasks: each is trained, or refused in one readable line.

python -m tests.config_fuzz --count 400 --seed 0
python -m tests.config_fuzz --count 2000 --seed 1 --until build
"""

import argparse
import copy
import random
import tempfile
import traceback
from pathlib import Path
from typing import Dict, Iterator, List, Tuple
from unittest import mock

import numpy as np
from mmengine.config import Config
from PIL import Image

from fba_mm import LocalLearningError, localize
from fba_mm.checkpoint import guard_checkpoints
from fba_mm.datasets import build_digits_on_photos
from fba_mm.preflight.building import build_model, readable_errors
from fba_mm.preflight.config_types import check_types
from fba_mm.preflight.model_wrapper import choose_model_wrapper
from fba_mm.preflight.start import build_loops, readable_start
from fba_mm.preflight.training import check_training, use_atomic_checkpoints

from .conftest import retinanet
from .segmentation import segmentor
from .super_resolution import editor
from .test_tools.in_process import untouched_process, without_niceties

# What stands where something else is expected.
VALUES = [
    None,
    1,
    -1,
    0,
    2.5,
    float('nan'),
    float('inf'),
    'x',
    '',
    [],
    [1],
    {},
    dict(type='x'),
    dict(a=1),
    True,
    10**9,
]


class Stop(Exception):
    """The first iteration would begin: nothing was found wrong."""


def runtime(scope: str, dataset: dict, evaluator, **more) -> dict:
    """A config of a short training."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dataset,
    )
    return dict(
        default_scope=scope,
        train_dataloader=loader,
        val_dataloader=copy.deepcopy(loader),
        val_evaluator=evaluator,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        val_cfg=dict(type='ValLoop'),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
            clip_grad=dict(max_norm=10),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
            dict(type='MultiStepLR', milestones=[1], by_epoch=True),
        ],
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=1),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=dict(type='CheckpointHook', interval=1),
            sampler_seed=dict(type='DistSamplerSeedHook'),
        ),
        custom_hooks=[dict(type='EMAHook', momentum=0.01)],
        env_cfg=dict(
            cudnn_benchmark=False,
            mp_cfg=dict(mp_start_method='fork'),
            dist_cfg=dict(backend='nccl'),
        ),
        visualizer=dict(type='Visualizer', vis_backends=[]),
        log_processor=dict(window_size=10, by_epoch=True),
        log_level='WARNING',
        load_from=None,
        resume=False,
        randomness=dict(seed=0),
        launcher='none',
        **more,
    )


def stock_configs(folder: Path) -> dict:
    """A small config of each task, on data that is written to a folder."""
    boxes = build_digits_on_photos(
        folder / 'boxes', num_train=4, num_val=2, image_size=64, digit_size=(12, 28)
    )
    masks = build_digits_on_photos(
        folder / 'masks', num_train=4, num_val=2, image_size=64, digit_size=(24, 40), masks=True
    )
    for kind, size in (('img', 16), ('gt', 32)):
        (folder / 'pairs' / kind).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(noise).save(folder / 'pairs' / kind / f'{i}.png')
    for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
        (folder / 'depths' / kind).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
            map_of = noise if kind == 'images' else 1000 + 9 * noise[..., 0].astype(np.uint16)
            Image.fromarray(map_of).save(folder / 'depths' / kind / f'kitchen_{i:04}.{suffix}')
    load = dict(type='LoadImageFromFile')
    detector = retinanet(num_modules=None)
    detector['bbox_head']['num_classes'] = 10
    segmenter = segmentor(None)
    for head in ('decode_head', 'auxiliary_head'):
        segmenter[head]['num_classes'] = 11
    return dict(
        detection=runtime(
            'mmdet',
            dict(
                type='CocoDataset',
                data_root=f'{boxes}/',
                data_prefix=dict(img='train/'),
                ann_file='annotations/instances_train.json',
                metainfo=dict(classes=tuple('0123456789')),
                pipeline=[
                    load,
                    dict(type='LoadAnnotations', with_bbox=True),
                    dict(type='Resize', scale=(64, 64), keep_ratio=True),
                    dict(
                        type='PackDetInputs',
                        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                    ),
                ],
            ),
            dict(type='CocoMetric', ann_file=f'{boxes}/annotations/instances_train.json'),
            model=dict(detector),
        ),
        classification=runtime(
            'mmpretrain',
            dict(
                type='fba_mm.HandwrittenDigits',
                split='train',
                indices=6,
                pipeline=[dict(type='PackInputs')],
            ),
            dict(type='Accuracy'),
            data_preprocessor=dict(num_classes=10, mean=[80.0] * 3, std=[90.0] * 3),
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=10,
                    in_channels=64,
                    loss=dict(type='CrossEntropyLoss'),
                ),
            ),
        ),
        segmentation=runtime(
            'mmseg',
            dict(
                type='BaseSegDataset',
                data_root=f'{masks}/',
                img_suffix='.jpg',
                metainfo=dict(classes=tuple('0123456789') + ('x',)),
                data_prefix=dict(img_path='train', seg_map_path='masks/train'),
                pipeline=[load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
            ),
            dict(type='IoUMetric'),
            model=segmenter,
        ),
        depth_estimation=runtime(
            'mmseg',
            dict(
                type='NYUDataset',
                data_root=f'{folder}/depths',
                data_prefix=dict(img_path='images', depth_map_path='annotations'),
                pipeline=[
                    load,
                    dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
                    dict(
                        type='PackSegInputs',
                        meta_keys=(
                            'img_path',
                            'depth_map_path',
                            'ori_shape',
                            'img_shape',
                            'pad_shape',
                            'scale_factor',
                            'flip',
                            'category_id',
                        ),
                    ),
                ],
            ),
            dict(type='DepthMetric', min_depth_eval=0.001, max_depth_eval=10.0),
            model=dict(
                type='DepthEstimator',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[128.0] * 3, std=[64.0] * 3, size=(32, 32)
                ),
                backbone=dict(type='ResNet', depth=18, base_channels=16, stem_channels=16),
                decode_head=dict(
                    type='VPDDepthHead',
                    in_channels=[16, 32, 64, 128],
                    embed_dim=16,
                    feature_dim=128,
                    num_deconv_layers=2,
                    num_deconv_filters=(16, 16),
                    max_depth=10,
                ),
                test_cfg=dict(mode='whole'),
            ),
        ),
        super_resolution=runtime(
            'mmagic',
            dict(
                type='BasicImageDataset',
                data_root=f'{folder}/pairs',
                metainfo=dict(dataset_type='x', task_name='sisr'),
                data_prefix=dict(img='img', gt='gt'),
                pipeline=[
                    *(
                        dict(load, key=key, color_type='color', channel_order='rgb')
                        for key in ('img', 'gt')
                    ),
                    dict(type='PackInputs'),
                ],
            ),
            [dict(type='PSNR')],
            model=editor(None),
        ),
    )


def places(node, path: Tuple = ()) -> Iterator[Tuple]:
    """Where something stands in a config."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, (list, tuple))
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutate(cfg: Config, rng: random.Random) -> Tuple[Config, str]:
    """A copy with one setting replaced, removed, doubled or misspelled."""
    cfg = copy.deepcopy(cfg)
    # Data sets and pipelines are deep: as likely as all the rest together, if not weighed.
    found = list(places(cfg.to_dict()))
    path = rng.choices(found, [1 / len(one) ** 2 for one in found])[0]
    parent = cfg._cfg_dict
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(parent, tuple):
        return mutate(cfg, rng)
    kind = rng.choice(['replace'] * 6 + ['remove', 'double', 'misspell'])
    where = '.'.join(map(str, path))
    if kind == 'remove' or kind == 'misspell' and not isinstance(parent, dict):
        del parent[path[-1]]
        return cfg, f'{where} removed'
    if kind == 'misspell':
        parent[f'{path[-1]}s'] = parent.pop(path[-1])
        return cfg, f'{where}s'
    if kind == 'double' and isinstance(parent[path[-1]], list):
        parent[path[-1]] = parent[path[-1]] * 2
        return cfg, f'{where} doubled'
    value = copy.deepcopy(rng.choice(VALUES))
    parent[path[-1]] = value
    return cfg, f'{where}={value!r}'


def prepare(cfg: Config, until: str = 'start') -> None:
    """What tools/train.py does with a config, up to some point.

    Args:
        cfg: The config.
        until: ``'build'``: the model is built, and all checks of settings and data have been made;
            ``'start'``: the first iteration would begin; ``'iteration'``: it has ended.

    Raises:
        Stop: All is well.
    """
    from mmengine.runner import Runner

    from fba_mm import command_line

    guard_checkpoints(False)
    check_types(cfg)
    choose_model_wrapper(cfg)
    use_atomic_checkpoints(cfg)
    check_training(cfg, build_model(cfg))
    if until == 'build':
        raise Stop
    with readable_errors('training cannot start'):
        runner = command_line.build_runner(cfg)
    build_loops(runner)
    assert isinstance(runner, Runner)
    loop = type(runner.train_loop)
    run_iter = loop.run_iter

    def run_one(self: object, *batch: object) -> None:
        run_iter(self, *batch)
        raise Stop

    stop = (
        mock.patch.object(loop, 'run_iter', run_one)
        if until == 'iteration'
        else mock.patch.object(loop, 'run_epoch', side_effect=Stop)
    )
    with readable_start(runner), stop:
        runner.train()


def run(cfg: Config, until: str = 'start') -> str:
    """What became of a config: ``'trains'``, ``'refused: ...'`` or a traceback.

    Args:
        cfg: The config.
        until: See :func:`prepare`.
    """
    with untouched_process(), without_niceties():
        try:
            prepare(cfg, until)
        except Stop:
            return 'trains'
        except LocalLearningError as error:
            message = str(error)
            cause = error.__cause__
            if isinstance(cause, Stop):
                return 'trains'
            return f'refused: {message}' if '\n' not in message else f'TWO LINES: {message}'
        except Exception:
            return f'TRACEBACK {traceback.format_exc()}'
    return 'nothing happened'


def base_configs(folder: Path) -> Dict[Tuple[str, str], Config]:
    """Good configs, by task, and of stock and local training."""
    found = {}
    for task, settings in stock_configs(folder).items():
        found[task, 'stock'] = Config(dict(settings, work_dir=str(folder / 'work')))
        found[task, 'local'] = localize(found[task, 'stock'], num_modules=3)
    return found


def mutations(
    base: Dict[Tuple[str, str], Config], count: int, seed: int
) -> Iterator[Tuple[str, Config, str]]:
    """Mutated configs, of all good ones by turns, and what was changed."""
    rng, kinds = random.Random(seed), list(base)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        cfg, change = mutate(base[kind], rng)
        yield ' '.join(kind), cfg, change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=400)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--until', choices=('build', 'start', 'iteration'), default='iteration')
    parser.add_argument('--verbose', action='store_true')
    args = parser.parse_args()
    found: List[str] = []
    with tempfile.TemporaryDirectory() as folder:
        base = base_configs(Path(folder))
        for kind, cfg, change in mutations(base, args.count, args.seed):
            result = run(cfg, args.until)
            found.append(result.split()[0])
            if args.verbose or result.split()[0] in ('TRACEBACK', 'TWO', 'nothing'):
                print(f'{kind}: {change}: {result}', flush=True)
    print({kind: found.count(kind) for kind in sorted(set(found))})


if __name__ == '__main__':
    main()
