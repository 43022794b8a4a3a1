"""Every config of configs/ can be read, and says what its task asks for."""

import copy
import json
import math
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from mmengine.fileio import load
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope

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
DEMO_BP = ('demo/retinanet_r34_digits.py', 'demo/yolov1_r34_digits.py')
LOCAL = [name for name in COMPLETE if '_bp.' not in name and name not in DEMO_BP]
# What local learning leaves alone.
STOCK = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'param_scheduler',
    'train_cfg',
    'val_evaluator',
    'optim_wrapper',
)

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


def _unscoped(part):
    """A part of a config without the marks that MMEngine leaves on what is inherited."""
    if isinstance(part, dict):
        return {key: _unscoped(value) for key, value in part.items() if key != '_scope_'}
    return [_unscoped(one) for one in part] if isinstance(part, list) else part


def _assert_stock(found, stock, name, keys=STOCK):
    """What local learning leaves alone is as in the stock config."""
    for key in keys:
        ours, theirs = (_unscoped(cfg[key]) for cfg in (found, stock))
        if key == 'optim_wrapper':
            theirs.setdefault('type', 'OptimWrapper')
        assert ours == theirs, (name, key)


def _datasets(cfg, *splits):
    loaders = [cfg[f'{split}_dataloader'] for split in splits]
    return [one.dataset for part in loaders for one in (part if isinstance(part, list) else [part])]


def test_each_brings_all_that_it_needs(loaded):
    """So that MMDetection's, MMPretrain's and MMSegmentation's own tools train it."""
    for name, cfg in loaded.items():
        hooks = [hook.type for hook in cfg.get('custom_hooks') or []]
        types = _types(cfg.to_dict())
        assert ('LocalBackbone' in types) == (name in LOCAL), name
        assert hooks.count('FBAHook') == (name in LOCAL), name
        wrapper = 'LocalOptimWrapper' if name in LOCAL else 'OptimWrapper'
        assert cfg.optim_wrapper.get('type', 'OptimWrapper') == wrapper, name
        assert ('model_wrapper_cfg' in cfg) == (name in LOCAL), name
        assert cfg.custom_imports.imports == ['fba_mm'], name
        # Where it needs another package to register something, the prefix finds it.
        for kind in types - {'LocalBackbone', 'FBAHook', 'LocalOptimWrapper', 'LocalDataParallel'}:
            assert kind not in fba_mm._WHERE and kind != 'CifarResNet', name
            if kind.startswith('fba_mm.'):
                assert getattr(fba_mm, type_name(kind)).__module__.startswith('fba_mm.'), name


def test_what_is_not_registered_on_import_is_named_with_its_prefix(loaded):
    """Else a config trains only in a process that has imported it for another reason."""
    # Importing the package takes no other than MMEngine: users of detectors have no mmpretrain.
    code = (
        "import sys; sys.modules['mmpretrain'] = None; import json, fba_mm; "
        'from mmengine import registry as r; '
        'from fba_mm.local.partition.family import _FAMILIES; '
        "assert 'VisionTransformer' in str(_FAMILIES); "
        'parts = [p for p in vars(r).values() if isinstance(p, r.Registry)]; '
        'print(json.dumps([name for part in parts for name in part.module_dict]))'
    )
    printed = subprocess.check_output([sys.executable, '-W', 'ignore', '-c', code])
    on_import = set(json.loads(printed))
    sources = ''.join(path.read_text() for path in Path(fba_mm.__file__).parent.rglob('*.py'))
    later = set(re.findall(r'@\w+\.register_module\(\)\nclass (\w+)', sources)) - on_import
    assert 'CifarResNet' in on_import
    # The light heads are put in place by functions, which import them.
    assert later - {'LightFCNHead', 'LightRetinaHead'} == set(fba_mm._WHERE)
    for name, cfg in loaded.items():
        assert not later & _types(cfg.to_dict()), name


def test_those_of_benchmarks_can_be_read():
    found = sorted((CONFIGS.parent / 'benchmarks/configs').glob('*.py'))
    with mock.patch('mmengine.config.utils.load', _load_once):
        read = {path.stem: load_config(str(path)) for path in found}
    schedules = [
        PARAM_SCHEDULERS.get(one.type) for cfg in read.values() for one in cfg.param_scheduler
    ]
    assert len(read) >= 5 and None not in schedules


def test_metafiles_say_what_the_configs_do(loaded):
    found = {}
    for path in CONFIGS.rglob('metafile.yml'):
        for model in yaml.safe_load(path.read_text()).get('Models', ()):
            found[model['Config'].split('/', 1)[1]] = model['Metadata']
    assert set(found) == set(loaded)
    for name, cfg in loaded.items():
        backbone = cfg.model.get('backbone') or cfg.model.generator
        modules = backbone.get('num_modules', 1) if name in LOCAL else 1
        modules = len(modules) if isinstance(modules, list) else modules
        assert found[name]['Modules'] == modules, name
        assert found[name].get('Epochs') == cfg.train_cfg.get('max_epochs'), name
        assert found[name].get('Iterations') == cfg.train_cfg.get('max_iters'), name


def test_nothing_is_downloaded_unasked(loaded):
    for name, cfg in loaded.items():
        for dataset in _datasets(cfg, 'train', 'val', 'test'):
            assert not dataset.get('download'), name
            # Whose own default is to download.
            assert 'CIFAR' not in dataset.type or dataset.download is False, name


def test_what_is_tested_on_is_neither_trained_on_nor_drawn_at_random(loaded):
    for name, cfg in loaded.items():
        (train,) = _datasets(cfg, 'train')
        for dataset in _datasets(cfg, 'val', 'test'):
            where = ('split', 'ann_file', 'data_root', 'data_prefix')
            assert [train.get(key) for key in where] != [dataset.get(key) for key in where], name
            assert not re.search('Random', str(dataset.pipeline)), name


def test_heads_have_the_classes_of_the_data(loaded):
    for name, cfg in loaded.items():
        if not name.startswith(('classification/', 'detection/')):
            continue
        (dataset,) = _datasets(cfg, 'train')
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            kind = registry.get(dataset.type)
        meta = dataset.get('metainfo') or kind.METAINFO
        head = cfg.model.get('bbox_head') or cfg.model.head
        assert head.num_classes == len(meta['classes']), name
        if 'data_preprocessor' in cfg:
            assert cfg.data_preprocessor.num_classes == head.num_classes, name
            # The preprocessor has the channel order that the pipeline gives.
            assert cfg.data_preprocessor.to_rgb == ('LoadImageFromFile' in str(dataset)), name


def test_digits_are_not_mirrored(loaded):
    for name, cfg in loaded.items():
        if 'svhn' in name or 'digits' in name:
            (dataset,) = _datasets(cfg, 'train')
            assert 'RandomFlip' not in str(dataset.pipeline), name


def test_detectors_train_from_scratch(loaded):
    """Nothing is loaded, frozen or left at the statistics that it starts with."""
    for name, cfg in loaded.items():
        if not name.startswith('detection/'):
            continue
        backbone = cfg.model.backbone.get('backbone') or cfg.model.backbone
        assert not backbone.get('init_cfg') and backbone.get('frozen_stages', -1) == -1, name
        assert backbone.norm_eval is False and not cfg.get('load_from'), name
        assert backbone.depth == int(re.search(r'_r(\d+)_', name)[1]), name


def test_local_learning_changes_nothing_but_the_training(loaded):
    """Without it, a config is the one that trains by back-propagation."""
    for name in LOCAL:
        if name.startswith(('classification/', 'detection/')):
            folder, file = name.replace('ablation/', '').rsplit('/', 1)
            network = re.match(r'\w*?r(?:esnet)?\d+|vit_tiny', file)[0]
            # MAN++ has a recipe of its own for detectors.
            recipe = '_manpp' if name.startswith('detection/') and '_manpp' in file else ''
            stock = loaded[f'{folder}/{network}{recipe}_bp.py']
        elif name.startswith('segmentation/digits'):
            stock = loaded[name.replace('_fba', '_bp')]
        else:
            continue
        # DGL's own repository has a schedule of its own.
        keys = ('model', 'val_dataloader') if 'dgl_three_layers' in name else STOCK
        _assert_stock(stock_form(loaded[name]), stock, name, keys)
        # A method that cuts by numbers of blocks has them all.
        backbone = loaded[name].model.backbone
        if isinstance(backbone.num_modules, list) and isinstance(backbone.num_modules[0], int):
            blocks = {32: 16, 110: 55, None: 13}[backbone.backbone.get('depth')]
            assert sum(backbone.num_modules) == blocks, name


@pytest.mark.parametrize(
    'name, blocks, first',
    [
        ('resnet32_man', (4, 5, 5), ()),
        ('resnet32_manpp_infopro', (4, 5, 5), (1,)),
        ('resnet110_man', (17, 18, 18), ()),
    ],
)
def test_weights_behind_man_fall_with_the_stage_of_the_next_block(name, blocks, first, loaded):
    host = loaded[f'classification/cifar10/{name}.py'].model.backbone.auxiliary.host
    weights = [
        *first,
        *(1 - stage / sum(blocks) for stage, n in enumerate(blocks, 1) for _ in range(n)),
    ]
    assert host.reconstruction_weight == pytest.approx([5 * weight for weight in weights])
    assert host.task_weight == pytest.approx([0.5 * weight for weight in weights])


def published_rate(epoch, lr, epochs=400):
    """The learning rate of an epoch, counted from 1, as AugLocal's and MAN's authors set it."""
    cosine = 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
    return cosine * (epoch - 1) / 10 + 0.01 * (11 - epoch) / 10 if epoch <= 10 else cosine


def _rates(cfg):
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.zeros(()))], cfg.optim_wrapper.optimizer.lr
    )
    configs = cfg.param_scheduler
    schedulers = [
        PARAM_SCHEDULERS.build(dict(one), default_args=dict(optimizer=optimizer))
        for one in (configs if isinstance(configs, list) else [configs])
    ]
    for _ in range(cfg.train_cfg.max_epochs):
        yield optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize('folder, lr', [('cifar10', 0.8), ('stl10', 0.1)])
def test_the_learning_rates_are_the_authors(folder, lr, loaded):
    rates = list(_rates(loaded[f'classification/{folder}/resnet32_bp.py']))
    assert len(rates) == 400
    for epoch, rate in enumerate(rates, start=1):
        assert abs(rate - published_rate(epoch, lr)) < 0.0032


def test_schedules_of_other_repositories(loaded):
    """DGL's own, and MAN++'s for Vision Transformers."""
    dgl = list(_rates(loaded['classification/cifar10/resnet32_dgl_three_layers.py']))
    assert dgl == pytest.approx([0.1 * 0.2 ** (epoch // 15) for epoch in range(50)])
    vit = list(_rates(loaded['classification/imagenet/vit_tiny_manpp.py']))
    cosine = [0.0005 * (1 + math.cos(math.pi * epoch / 90)) for epoch in range(90)]
    assert vit == pytest.approx(cosine)


@pytest.mark.parametrize('name', [name for name in COMPLETE if name.endswith('resnet32_bp.py')])
def test_fba_is_what_localize_makes(name, loaded):
    made = localize(loaded[name], num_modules=16)
    fba = loaded[name.replace('_bp', '_fba')]
    assert made.model == fba.model and made.optim_wrapper == fba.optim_wrapper


def test_numbers_of_modules_on_voc_are_the_finest_cut(loaded):
    for depth in (34, 50, 101, 152):
        cfg = loaded[f'detection/voc/retinanet_r{depth}_fba.py']
        with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
            backbone = MODELS.build(cfg.model.backbone.backbone)
        assert len(unroll(backbone).segments) == cfg.model.backbone.num_modules


def test_configs_that_the_docs_name_exist():
    """By path, or by the end of one in a table."""
    root = CONFIGS.parent
    texts = [root / 'README.md', *root.glob('docs/*.md'), *root.glob('benchmarks/results/*.md')]
    named = set()
    for text in texts:
        named |= set(re.findall(r'\w+/[\w/-]+_(?:bp|fba|dgl|manpp)\.py', text.read_text()))
    assert len(named) > 40
    for name in named:
        assert list(CONFIGS.rglob(re.sub('^configs/', '', name))), name


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
        *(
            f'coco/ablation/{path.stem}'
            for path in sorted(CONFIGS.glob('detection/coco/ablation/*.py'))
        ),
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
    for evaluator, sets in zip(cfg.test_evaluator, ('set5_evaluator', 'set14_evaluator')):
        rgb = [one for one in evaluator.metrics if one.convert_to is None]
        assert [dict(one, convert_to=None) for one in stock[sets].metrics] == rgb
        assert [one.crop_border for one in evaluator.metrics] == [scale] * 4
    found = stock_form(cfg)
    for key in ('model', 'custom_hooks', 'train_dataloader', 'param_scheduler', 'train_cfg'):
        assert _unscoped(found[key]) == _unscoped(stock[key]), key


def test_segmentation_configs_are_mmsegs_own_in_modules(loaded):
    for name in LOCAL:
        if not name.startswith('segmentation/') or '/digits/' in name:
            continue
        with mock.patch('mmengine.config.utils.load', _load_once):
            stock = load_config(re.search(r"mmseg::[^']+", (CONFIGS / name).read_text())[0])
        assert name.split('/')[1].replace('voc', 'voc12') in stock.filename, name
        _assert_stock(stock_form(loaded[name]), stock, name)
