"""Every config of configs/ can be read, and says what its task asks for."""

import copy
import math
import re
from functools import lru_cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.fileio import load
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope

import fba_mm
from fba_mm import localize
from fba_mm.analysis import TrainingStep
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.config import load_config, type_name
from fba_mm.local.partition import unroll
from fba_mm.localize import stock_form
from fba_mm.preflight.building import build_model
from fba_mm.preflight.training import check_training

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
COMPLETE = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.relative_to(CONFIGS).parts
)
# Folder of configs/classification: data set, classes, batch, learning rate, epochs, flips.
TASKS = {
    'cifar10': ('CIFAR10', 10, 1024, 0.8, 400, True),
    'cifar10_jpeg': ('CustomDataset', 10, 1024, 0.8, 400, True),
    'svhn': ('SVHN', 10, 1024, 0.8, 400, False),
    'stl10': ('STL10', 10, 128, 0.1, 400, True),
    'digits': ('HandwrittenDigits', 10, 64, 0.1, 8, False),
    'imagenet': ('ImageNet', 1000, 32, 0.1, 100, True),
}
MODULES = {'resnet32': 16, 'resnet110': 55, 'resnet101': 4}
# Methods whose authors cut in another way: modules of so many blocks.
BLOCKS = {
    ('resnet32', 'auglocal'): [1] * 13 + [3],
    ('resnet110', 'auglocal'): [1] * 51 + [4],
    ('resnet32', 'man'): [2] + [1] * 14,
    ('resnet110', 'man'): [2] + [1] * 53,
    **{('resnet32', f'auglocal_d{d}'): [1] * (15 - d) + [d + 1] for d in (1, 3, 5, 9)},
    ('resnet32', 'infopro_k4'): ['layer1.2', 'layer2.1', 'layer3.0'],
}


def falling(blocks, count, first=()):
    """InfoPro's weights behind MAN: they fall with the stage of the next block."""
    weights = [*first, *(1 - stage / count for stage, n in enumerate(blocks, 1) for _ in range(n))]
    return dict(
        type='InfoPro',
        reconstruction_weight=pytest.approx([5 * w for w in weights]),
        task_weight=pytest.approx([0.5 * w for w in weights]),
    )


AUXILIARY = {
    'greedy': dict(type='Greedy', num_classes=10),
    'predsim': dict(type='PredSim', num_classes=10),
    'dgl': dict(type='DGL', num_classes=10),
    'infopro': dict(
        type='InfoPro', num_classes=10, reconstruction_weight=(5, 0.2), task_weight=(0.05, 0.5)
    ),
    'auglocal': dict(type='AugLocal', num_classes=10, max_depth=2),
    'man': dict(type='MAN', num_classes=10, host=falling((4, 5, 5), 14)),
    'manpp': dict(type='MAN++', num_classes=10),
    'fba': dict(type='SLM'),
}
# Beside the table, on CIFAR-10.
VARIANTS = {
    **{f'auglocal_d{d}': dict(AUXILIARY['auglocal'], max_depth=d) for d in (1, 3, 5, 9)},
    'dgl_three_layers': dict(AUXILIARY['dgl'], hidden_layers=3, hidden_bias=True),
    'manpp_infopro': dict(AUXILIARY['manpp'], host=falling((4, 5, 5), 14, first=[1])),
    'infopro_k4': AUXILIARY['infopro'],
    'fba_k8': dict(type='SLM', blocks_per_stage=2),
}
DEMO_BP = ('demo/retinanet_r34_digits.py', 'demo/yolov1_r34_digits.py')
CLASSIFICATION = [name for name in COMPLETE if name.startswith('classification/')]


# To find what is inherited by name, MMEngine reads an index of the package's every time.
_load_once = lru_cache(maxsize=None)(load)


@pytest.fixture(scope='module')
def loaded():
    """All configs, each read once."""
    with mock.patch('mmengine.config.utils.load', _load_once):
        return {name: load_config(str(CONFIGS / name)) for name in COMPLETE}


def _types(part) -> set:
    """All that a config names as a type."""
    if isinstance(part, dict):
        own = {part['type']} if isinstance(part.get('type'), str) else set()
        return own.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, (list, tuple)) else set()


@pytest.mark.parametrize('name', COMPLETE)
def test_a_config_brings_all_that_it_needs(name, loaded):
    """So that MMDetection's, MMPretrain's and MMSegmentation's own tools train it."""
    cfg = loaded[name]
    hooks = [hook.type for hook in cfg.get('custom_hooks') or []]
    types = _types(cfg.to_dict())
    is_local = 'LocalBackbone' in types
    assert hooks.count('FBAHook') == is_local
    assert is_local == ('_bp.' not in name and name not in DEMO_BP)
    if is_local:
        assert cfg.optim_wrapper.type == 'LocalOptimWrapper'
        assert cfg.model_wrapper_cfg.type == 'LocalDataParallel'
    else:
        assert 'model_wrapper_cfg' not in cfg
    assert cfg.custom_imports.imports == ['fba_mm']
    # Where it needs another package to register something, the prefix finds it.
    for kind in types - {'LocalBackbone', 'FBAHook', 'LocalOptimWrapper', 'LocalDataParallel'}:
        assert kind not in fba_mm._WHERE and kind != 'CifarResNet'
        if kind.startswith('fba_mm.'):
            assert getattr(fba_mm, type_name(kind)).__module__.startswith('fba_mm.')


def test_table_1_is_complete():
    nets = [
        ('cifar10', 'resnet110'),
        *((folder, 'resnet32') for folder in TASKS if folder != 'imagenet'),
    ]
    expected = {
        f'classification/{folder}/{net}_{method}.py'
        for folder, net in nets
        for method in ('bp', *AUXILIARY)
    }
    expected |= {f'classification/imagenet/resnet101_{method}.py' for method in ('bp', 'fba')}
    expected |= {f'classification/cifar10/resnet32_{name}.py' for name in VARIANTS}
    expected |= {'classification/cifar10_jpeg/resnet32_fba_k8.py'}
    assert set(CLASSIFICATION) == expected


@pytest.mark.parametrize('name', COMPLETE)
def test_nothing_is_downloaded_unasked(name, loaded):
    cfg = loaded[name]
    for split in ('train', 'val', 'test'):
        loaders = cfg[f'{split}_dataloader']
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            dataset = loader.dataset
            assert not dataset.get('download')
            # Whose own default is to download.
            assert 'CIFAR' not in dataset.type or dataset.download is False


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_data_and_schedule(name, loaded):
    cfg, folder = loaded[name], name.split('/')[1]
    kind, classes, batch, lr, epochs, flips = TASKS[folder]
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.train_dataloader.batch_size == batch
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', lr, 0.9)
    assert optimizer.weight_decay == 1e-4
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    pipeline = [transform.type for transform in cfg.train_dataloader.dataset.pipeline]
    assert ('RandomFlip' in pipeline) == flips
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        where = dataset.get('split') or dataset.data_prefix
        assert type_name(dataset.type) == kind
        assert where == ('train' if split == 'train' else 'val' if folder == 'imagenet' else 'test')
        assert len((dataset.get('metainfo') or dict(classes=range(classes)))['classes']) == classes
        if split != 'train':
            assert not re.search('Random', str(dataset.pipeline))
    if folder == 'imagenet':
        return
    assert optimizer.nesterov is True
    # The preprocessor has the channel order that the pipeline gives.
    assert cfg.data_preprocessor.to_rgb == ('LoadImageFromFile' in pipeline)
    size = 96 if folder == 'stl10' else 32
    pad, crop = (
        next((t for t in cfg.train_dataloader.dataset.pipeline if t.type == kind), {})
        for kind in ('ReflectPad', 'RandomCrop')
    )
    expected = (4, None) if 'cifar' in folder else (None, 2 if folder == 'svhn' else 4)
    assert crop.crop_size == size and (pad.get('padding'), crop.get('padding')) == expected
    assert cfg.model.head.init_cfg is None


def published_rate(epoch, lr, epochs=400):
    """The learning rate of an epoch, counted from 1, as AugLocal's and MAN's authors set it."""
    cosine = 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
    return cosine * (epoch - 1) / 10 + 0.01 * (11 - epoch) / 10 if epoch <= 10 else cosine


@pytest.mark.parametrize('folder, lr', [('cifar10', 0.8), ('stl10', 0.1)])
def test_the_learning_rates_are_the_authors(folder, lr, loaded):
    cfg = loaded[f'classification/{folder}/resnet32_bp.py']
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    for epoch in range(1, 401):
        assert abs(optimizer.param_groups[0]['lr'] - published_rate(epoch, lr)) < 0.0032
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_modules_and_method(name, loaded):
    cfg = loaded[name]
    net, method = Path(name).stem.split('_', 1)
    if method == 'bp':
        assert cfg.model.backbone.type != 'LocalBackbone' and not cfg.get('custom_hooks')
        return
    backbone = cfg.model.backbone
    assert backbone.type == 'LocalBackbone'
    assert backbone.num_modules == BLOCKS.get(
        (net, method), 8 if method == 'fba_k8' else MODULES[net]
    )
    expected = {**AUXILIARY, **VARIANTS}[method]
    if (net, method) == ('resnet110', 'infopro'):
        expected = dict(expected, reconstruction_weight=(5, 0.5), task_weight=(0, 1))
    if net == 'resnet110':
        expected = dict(
            expected,
            **dict(auglocal=dict(max_depth=3), man=dict(host=falling((17, 18, 18), 53))).get(
                method, {}
            ),
        )
    found = backbone.auxiliary.to_dict()
    if method.startswith('fba'):
        # Its head is a copy of the model's.
        assert found.pop('head') == dict(
            type='ImageClassifier', neck=cfg.model.neck.to_dict(), head=cfg.model.head.to_dict()
        )
    assert found == expected
    assert [hook.type for hook in cfg.custom_hooks] == ['FBAHook']


@pytest.mark.parametrize('name', [name for name in CLASSIFICATION if '_bp' not in name])
def test_a_method_changes_nothing_but_the_training(name, loaded):
    """Without local learning it is the config that trains by back-propagation."""
    stock = loaded[re.sub('(resnet[0-9]+)_.*$', r'\1_bp.py', name)]
    found = stock_form(loaded[name])
    assert found.model == stock.model
    for key in (
        'train_dataloader',
        'val_dataloader',
        'param_scheduler',
        'train_cfg',
        'data_preprocessor',
        'val_evaluator',
    ):
        assert found[key] == stock[key], key
    assert found.optim_wrapper.optimizer == stock.optim_wrapper.optimizer


@pytest.mark.parametrize('name', [name for name in CLASSIFICATION if name.endswith('32_bp.py')])
def test_fba_is_what_localize_makes(name, loaded):
    made = localize(loaded[name], num_modules=16)
    fba = loaded[name.replace('_bp', '_fba')]
    assert made.model == fba.model and made.optim_wrapper == fba.optim_wrapper


DETECTION = [name for name in COMPLETE if name.startswith('detection/')]
# Modules on VOC, by depth, as in the paper's Table 2; 4 on COCO.
DEPTHS = {34: 17, 50: 17, 101: 34, 152: 51}
ABLATION = {
    'no_slm': (dict(type='SLM', blocks_per_stage=0), 'past'),
    'bank_off': (None, 'off'),
    'bank_all': (None, 'all'),
    'own_head': ('a copy', 'past'),
    'light_head': (
        dict(type='SLM', channels=64, head=dict(type='LightRetinaNet', num_classes=80)),
        'past',
    ),
    'stage_tail': (
        dict(type='StageTail', head=dict(type='LightRetinaNet', num_classes=80)),
        'past',
    ),
}


def test_detection_tables_are_complete():
    expected = {
        f'detection/{data}/{net}_r{depth}_{method}.py'
        for data in ('voc', 'coco')
        for net in ('retinanet', 'yolov1')
        for depth in DEPTHS
        for method in ('bp', 'fba')
    }
    expected |= {f'detection/coco/ablation/retinanet_r34_{name}.py' for name in ABLATION}
    assert set(DETECTION) == expected | {
        'detection/coco/retinanet_r34_dgl.py',
        'detection/coco/retinanet_r50_manpp.py',
    }


@pytest.mark.parametrize('name', DETECTION)
def test_detection_data_and_schedule(name, loaded):
    cfg = loaded[name]
    voc, yolo = '/voc/' in name, 'yolov1' in name
    assert cfg.train_dataloader.batch_size == (32 if yolo else 64)
    assert cfg.model.type == ('fba_mm.YOLOV1' if yolo else 'RetinaNet')
    assert cfg.model.bbox_head.num_classes == (20 if voc else 80)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', 1e-4, 0.9)
    assert optimizer.nesterov and optimizer.weight_decay == 1e-4
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].T_max == 90
    size, keeps = ((448, 448), False) if yolo else ((320, 320), True)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.type == ('fba_mm.CheckedVOCDataset' if voc else 'CocoDataset')
        resize = next(t for t in dataset.pipeline if t.type == 'Resize')
        assert (resize.scale, resize.keep_ratio) == (size, keeps)
        assert ('train' in dataset.ann_file) == (split == 'train')
        assert not voc or '2007' in dataset.ann_file and '2007' in dataset.data_prefix.sub_data_root
    assert cfg.val_evaluator.type == ('fba_mm.ClasswiseVOCMetric' if voc else 'CocoMetric')
    # From scratch: nothing is loaded, frozen or left at the statistics that it starts with.
    backbone = cfg.model.backbone.get('backbone') or cfg.model.backbone
    assert not backbone.get('init_cfg') and backbone.get('frozen_stages', -1) == -1
    assert backbone.norm_eval is False and not cfg.get('load_from')
    assert backbone.depth == int(re.search(r'_r(\d+)_', name)[1])


@pytest.mark.parametrize('name', [name for name in DETECTION if not name.endswith('_bp.py')])
def test_detection_modules(name, loaded):
    cfg = loaded[name]
    local = cfg.model.backbone
    depth, method = re.search(r'_r(\d+)_(\w+)\.py', name).groups()
    assert local.type == 'LocalBackbone'
    assert local.num_modules == (
        DEPTHS[int(depth)] if '/voc/' in name else 'stages' if method == 'manpp' else 4
    )
    auxiliary, scope = ABLATION.get(method, (None, 'past'))
    auxiliary = auxiliary if 'ablation' in name else None
    copied = dict(
        type='RetinaNet',
        neck=cfg.model.get('neck'),
        bbox_head=cfg.model.bbox_head,
        train_cfg=cfg.model.get('train_cfg'),
    )
    if method == 'dgl':
        auxiliary, scope = dict(type='DGLFPN', head=copied), 'off'
    elif method == 'manpp':
        auxiliary = dict(type='MAN++', host=dict(type='OwnLevels', num_classes=80))
    elif auxiliary == 'a copy':
        auxiliary = dict(type='SLM', head=copied)
    assert local.get('auxiliary') == auxiliary
    (hook,) = cfg.custom_hooks
    assert (hook.type, hook.get('scope', 'past')) == ('FBAHook', scope)
    # Nothing but the training differs from back-propagation's config.
    stock = loaded[re.sub(r'(ablation/)?(\w+_r\d+_)\w+', r'\2bp', name)]
    found = stock_form(cfg)
    for key in (
        'model',
        'train_dataloader',
        'val_dataloader',
        'param_scheduler',
        'train_cfg',
        'val_evaluator',
        'optim_wrapper',
        'default_hooks',
    ):
        assert found[key] == stock[key], key


@pytest.mark.parametrize('depth', DEPTHS)
def test_tables_numbers_of_modules_are_the_finest_cut(depth, loaded):
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(loaded[f'detection/voc/retinanet_r{depth}_bp.py'].model.backbone)
    assert len(unroll(backbone).segments) == DEPTHS[depth]


def _narrow(part, width: int = 16):
    """Make a model's config narrow, its neck and heads those of the auxiliary networks included."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ('out_channels', 'in_channels', 'feat_channels') and value in (256, 512):
                part[key] = width
            elif key == 'in_channels' and isinstance(value, list):
                part[key] = [one // 8 for one in value]
            else:
                _narrow(value)


@pytest.mark.parametrize(
    'name',
    [
        'coco/retinanet_r34_fba',
        'coco/retinanet_r34_dgl',
        'coco/retinanet_r50_manpp',
        'voc/yolov1_r34_fba',
        *(f'coco/ablation/retinanet_r34_{name}' for name in ABLATION),
    ],
)
def test_detection_configs_train(name, loaded):
    cfg = copy.deepcopy(loaded[f'detection/{name}.py'])
    _narrow(cfg.model)
    cfg.model.backbone.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.bbox_head.in_channels = 64 if 'yolov1' in name else 16
    model = build_model(cfg)
    wrapper = check_training(
        cfg.__class__(dict(cfg.to_dict(), train_dataloader=dict(), val_dataloader=None)), model
    )
    step = TrainingStep(cfg)
    losses = step(synthetic_batch(step.model, (2, 3, 64, 64)))
    assert all(loss.isfinite() for loss in losses.values()) and losses['loss'] > 0
    assert type(wrapper).__name__ == 'LocalOptimWrapper'
    auxiliary = {type(one).__name__ for one in step.model.backbone.auxiliary}
    method = name.rsplit('_', 1)[-1]
    assert auxiliary == {
        dict(dgl='DGLFPN', manpp='MANPlusPlus', tail='StageTail').get(method, 'SLM')
    }


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_super_resolution(scale, loaded):
    cfg = loaded[f'edsr_x{scale}_fba.py']
    stock = load_config(f'mmagic::edsr/edsr_x{scale}c64b16_1xb16-300k_div2k.py')
    assert cfg.model.generator.type == 'LocalBackbone'
    # Patches of 48×48 and Adam at 1e-4, as the paper has them; 49×49 in mmagic's config of ×4.
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'PairedRandomCrop')
    assert crop.gt_patch_size == (49 if scale == 4 else 48) * scale
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ('Adam', 1e-4)
    found = stock_form(cfg)
    for key in ('model', 'custom_hooks', 'train_dataloader', 'param_scheduler', 'train_cfg'):
        assert _unscoped(found[key]) == _unscoped(stock[key]), key


def _unscoped(part):
    """A part of a config without the marks that MMEngine leaves on what is inherited."""
    if isinstance(part, dict):
        return {key: _unscoped(value) for key, value in part.items() if key != '_scope_'}
    return [_unscoped(one) for one in part] if isinstance(part, list) else part


SEGMENTATION = [name for name in COMPLETE if name.startswith('segmentation/')]


@pytest.mark.parametrize('name', [name for name in SEGMENTATION if '/digits/' not in name])
def test_segmentation_configs_are_mmsegs_own_in_modules(name, loaded):
    cfg = loaded[name]
    with mock.patch('mmengine.config.utils.load', _load_once):
        stock = load_config(re.search(r"mmseg::[^']+", (CONFIGS / name).read_text())[0])
    folder, net = name.split('/')[1:]
    assert re.sub('_r50|-t', '', net.split('_fba')[0]).replace('upernet_', '') in stock.filename
    assert (
        dict(voc='PascalVOCDataset', cityscapes='CityscapesDataset', ade20k='ADE20KDataset')[folder]
        == stock.val_dataloader.dataset.type
    )
    assert cfg.model.backbone.type == 'LocalBackbone' and cfg.model.backbone.num_modules == 4
    found = stock_form(cfg)
    for key in (
        'model',
        'train_dataloader',
        'val_dataloader',
        'param_scheduler',
        'train_cfg',
        'val_evaluator',
        'optim_wrapper',
        'default_hooks',
    ):
        assert _unscoped(found[key]) == _unscoped(stock[key]), key


def test_segmentation_is_complete():
    nets = ('fcn_r50', 'pspnet_r50', 'deeplabv3_r50')
    expected = {
        f'segmentation/{data}/{net}_fba.py'
        for data in ('cityscapes', 'ade20k', 'voc')
        for net in nets
    }
    expected |= {
        'segmentation/ade20k/upernet_swin-t_fba.py',
        'segmentation/digits/fcn_r18_bp.py',
        'segmentation/digits/fcn_r18_fba.py',
    }
    assert set(SEGMENTATION) == expected


def test_files_repeat_nothing():
    """A method's settings stand in one place, and so do a data set's and the schedule's."""
    for name in CLASSIFICATION:
        lines = [
            line for line in (CONFIGS / name).read_text().splitlines() if not line.startswith('#')
        ]
        assert len(lines) <= 12, name
        assert 'num_classes' not in '\n'.join(lines) and 'Accuracy' not in '\n'.join(lines)
