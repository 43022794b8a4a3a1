"""Each setting of what this package registers changes something; one that nothing takes is refused.

A setting that is new has to be added to ``CHANGED``, with a value that isn't its default.
"""

import ast
import functools
import inspect
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from torch import nn

import fba_mm
from fba_mm import LocalLearningError
from fba_mm.preflight.building import argument_meant, arguments_of, build_model, readable_errors
from fba_mm.preflight.config_types import check_types
from tests.test_local.test_auxiliary.places import place

STUB = dict(type='FeatureStub', channels=[8, 16, 16], strides=[4, 8, 16])
RESNET = dict(type='CifarResNet', depth=8, base_channels=4)
LIGHT = dict(type='LightRetinaNet', num_classes=3, channels=8)
# In the middle of a ResNet-32's second stage.
PLACE = place(7, copy_block=lambda path: nn.Conv2d(32, 32, 1))
AT = dict(cut_point=PLACE, num_classes=5)
NORMAL = dict(type='Normal', layer='Conv2d')
PARAMETER = nn.Parameter(torch.zeros(2))
SGD, ADAM = torch.optim.SGD([PARAMETER], lr=0.1), torch.optim.Adam([PARAMETER])
REFUSED = object()

# What is built, and for each of its settings another value, with what else has to be given then.
CHANGED = {
    'LocalBackbone': (
        dict(backbone=RESNET, num_modules=2),
        dict(
            backbone=dict(RESNET, depth=14),
            num_modules=3,
            auxiliary=dict(blocks_per_stage=2),
            head_batch_size=1,
            reserve=10.0,
            recompute=2,
            recompute_batch_size=dict(recompute_batch_size=1, recompute=2),
            # Both belong to what tools/train.py replaces before a model is built.
            memory_budget=REFUSED,
            pretrained=REFUSED,  # Handed on to the wrapped one, which takes none.
            init_cfg=NORMAL,
        ),
    ),
    'SLM': (
        dict(cut_point=PLACE),
        dict(
            channels=dict(channels=8, head=LIGHT),
            head=LIGHT,
            blocks_per_stage=2,
            finish_stage=True,
            bank_use=REFUSED,  # The package has none.
            bank_dropout=0.1,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'StageTail': (
        dict(cut_point=PLACE, head=LIGHT),
        dict(head=dict(LIGHT, channels=4), channels=4, loss_weight=2.0, init_cfg=NORMAL),
    ),
    'Greedy': (AT, dict(num_classes=6, loss_weight=2.0, init_cfg=NORMAL)),
    'Readout': (AT, dict(num_classes=6, loss_weight=2.0, init_cfg=NORMAL)),
    'DGL': (
        AT,
        dict(
            num_classes=6,
            width=4,
            positions=3,
            hidden_layers=1,
            hidden_width=4,
            hidden_bias=True,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'PredSim': (
        AT,
        dict(
            num_classes=6,
            similarity_weight=0.5,
            pooled_values=64,
            image_size=4,
            zero_init=True,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'InfoPro': (
        AT,
        dict(
            num_classes=6,
            reconstruction_weight=(1.0, 1.0),
            task_weight=(1.0, 1.0),
            contrastive=True,
            max_value=1.0,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'AugLocal': (
        AT,
        dict(
            num_classes=6,
            max_depth=4,
            min_depth=dict(min_depth=4, max_depth=4),
            pyramid=0.1,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'MAN': (
        AT,
        dict(
            host=dict(type='Greedy'), num_classes=6, momentum=0.5, loss_weight=2.0, init_cfg=NORMAL
        ),
    ),
    'MAN++': (
        AT,
        dict(
            host=dict(type='Greedy'),
            num_classes=6,
            momentum=0.5,
            blocks=2,
            loss_weight=2.0,
            init_cfg=NORMAL,
        ),
    ),
    'DGLFPN': (
        dict(cut_point=PLACE, head=LIGHT),
        dict(head=dict(LIGHT, channels=4), loss_weight=2.0, init_cfg=NORMAL),
    ),
    'OwnLevels': (
        dict(AT, channels=8),
        dict(num_classes=6, channels=4, stacked_convs=1, loss_weight=2.0, init_cfg=NORMAL),
    ),
    'LightRetinaNet': (
        dict(backbone=STUB, num_classes=3),
        dict(
            backbone=dict(STUB, channels=[4, 4, 4]),
            num_classes=4,
            channels=4,
            stacked_convs=2,
            octave_base_scale=2,
            scales_per_octave=2,
            ratios=(1.0, 2.0),
            strides=[8, 16],
            loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='mmdet.SmoothL1Loss'),
            neck=dict(add_extra_convs='on_output'),
            bbox_head=dict(feat_channels=4),
            train_cfg=dict(allowed_border=0),
        ),
    ),
    'LightFCN': (
        dict(backbone=STUB, num_classes=3),
        dict(
            backbone=dict(STUB, channels=[4, 4, 4]),
            num_classes=4,
            channels=4,
            positions_of=2,
            label_stride=1,
            in_index=[0, 2],
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=2.0),
            decode_head=dict(ignore_index=3),
        ),
    ),
    'CifarResNet': (
        dict(depth=8),
        dict(
            depth=14,
            base_channels=4,
            stem_channels=4,
            out_indices=(1, 2),
            zero_init_residual=True,
            kwargs=dict(frozen_stages=1),
        ),
    ),
    'SlicedFocalLoss': (
        dict(),
        dict(
            use_sigmoid=REFUSED,
            gamma=1.0,
            alpha=0.5,
            reduction='sum',
            loss_weight=2.0,
            activated=REFUSED,
            slice_bytes=1000,
        ),
    ),
    'YOLOV1Loss': (dict(), dict(coord_weight=1.0, noobj_weight=1.0, loss_weight=2.0)),
    'FBAHook': (
        dict(),
        dict(
            scope='all',
            bank_dtype=dict(scope='all', bank_dtype='bfloat16'),
            log_terms=True,
            invalid_loss='skip',
            exact_from=0.5,
        ),
    ),
    'LocalAccuracyHook': (dict(), dict(scope='off')),
    'LocalMemoryHook': (dict(), dict(interval=7)),
    'SplitBatchHook': (dict(), dict(images=2)),
    'AtomicCheckpointHook': (dict(), dict(kwargs=dict(interval=3))),
    'LocalOptimWrapper': (
        dict(),
        dict(optimizer=ADAM, apply='end', kwargs=dict(accumulative_counts=2)),
    ),
    'AmpLocalOptimWrapper': (
        dict(dtype='bfloat16'),
        # Some versions of torch refuse float16 on a CPU.
        dict(loss_scale=8.0, dtype='float16', kwargs=dict(accumulative_counts=2)),
    ),
}


def build(name: str, **settings):
    """Something that is registered, with the same initial weights each time."""
    torch.manual_seed(0)
    cfg = ConfigDict(type=name, **settings)
    getattr(fba_mm, name, None)  # Some are imported when they are named.
    if 'OptimWrapper' in name:
        cfg.setdefault('optimizer', SGD)
        return OPTIM_WRAPPERS.build(cfg)
    if 'Hook' in name:
        return HOOKS.build(cfg)
    return MODELS.build(cfg)


def described(thing, seen=None):
    """All that a built object holds, in a form that can be compared."""
    seen = {} if seen is None else seen
    if id(thing) in seen and not isinstance(thing, (int, float, str, type(None))):
        return f'number {seen[id(thing)][0]}'
    seen[id(thing)] = len(seen), thing  # Kept, so that no other gets its number.
    inner = functools.partial(described, seen=seen)
    if isinstance(thing, torch.Tensor):
        return tuple(thing.shape), thing.dtype, float(thing.detach().double().sum())
    if isinstance(thing, dict):
        # Hooks have numbers, of all that there have been.
        return {repr(k): inner(v) for k, v in thing.items() if not str(k).endswith('_hooks')}
    if isinstance(thing, (list, tuple, set)):
        return [inner(one) for one in thing]
    if isinstance(thing, functools.partial):
        return inner(thing.func), inner(thing.args), inner(thing.keywords)
    if inspect.isroutine(thing) or inspect.isclass(thing):
        return thing.__qualname__
    held = getattr(thing, '__dict__', None)
    if not held:  # Objects without attributes say where they lie in memory.
        return re.sub(' at 0x[0-9a-f]+', '', repr(thing))
    return type(thing).__qualname__, inner(held)


def owner(name: str):
    """The class or function that is registered."""
    getattr(fba_mm, name, None)
    return next(r.get(name) for r in (MODELS, HOOKS, OPTIM_WRAPPERS) if r.get(name) is not None)


@pytest.mark.parametrize('name', CHANGED)
def test_each_setting_changes_something(name):
    base, changed = CHANGED[name]
    before = described(build(name, **base))
    assert described(build(name, **base)) == before, 'built twice, it differs: nothing is compared'
    for setting, value in changed.items():
        several = isinstance(value, dict) and (setting in value or setting in VARIADIC)
        given = value if several else {setting: value}
        try:
            with readable_errors(setting):
                after = build(name, **{**base, **({setting: 'x'} if value is REFUSED else given)})
        except LocalLearningError as error:
            assert value is REFUSED or 'autocast' in str(error), setting
        else:
            assert value is not REFUSED and described(after) != before, setting


VARIADIC = ('kwargs', 'decode_head')


@pytest.mark.parametrize('name', CHANGED)
def test_all_settings_are_listed(name):
    function = owner(name)
    function = vars(function)['__init__'] if inspect.isclass(function) else function
    taken = {n for n in inspect.signature(function).parameters if n not in ('self', 'cut_point')}
    assert set(CHANGED[name][1]) == taken


@pytest.mark.parametrize('name', CHANGED)
def test_a_setting_that_nothing_takes_is_refused(name):
    near = max(arguments_of(owner(name)) - {'cut_point'}, key=len, default=None)
    with pytest.raises(LocalLearningError) as info, readable_errors('it cannot be built'):
        build(name, **CHANGED[name][0], **{f'{near}s': 1})
    message = str(info.value)
    assert f'{near}s' in message and '\n' not in message
    assert message.endswith(f'is {near!r} meant?')


def test_what_is_registered_is_looked_at():
    """All that this package registers is in ``CHANGED``, or has no settings of its own."""
    registered = {
        name
        for registry in (MODELS, HOOKS, OPTIM_WRAPPERS)
        for name, kind in registry.module_dict.items()
        if kind.__module__.startswith('fba_mm.')
    }
    elsewhere = {
        'FeatureStub',  # An auxiliary network makes it.
        'FeatureSource',
        'InSlices',  # Passes on what the stock module takes, which refuses the rest.
        'Recomputed',
        'IterationSeedHook',
        'SLMReconstruction',  # At the end of a network that makes images.
        'OwnLevelNeck',  # OwnLevels makes it.
        'LightFCNHead',
        'LightRetinaHead',
        'YOLOV1',
        'YOLOV1Head',
    }
    assert registered - elsewhere <= set(CHANGED)


def test_the_innermost_part_is_the_one_that_is_meant():
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='LocalBackbone',
                    backbone=RESNET,
                    num_modules=2,
                    auxiliary=dict(type='SLM', block_per_stage=1),
                ),
            ),
        )
    )
    with pytest.raises(LocalLearningError, match="is 'blocks_per_stage' meant"):
        build_model(cfg)
    assert argument_meant(ValueError("unexpected keyword argument 'x'")) is None


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(env_cfg=dict(cudnn_benchmarks=True)), "is 'cudnn_benchmark' meant"),
        (dict(env_cfg=dict(mp_cfg=dict(mp_start_methods='fork'))), "is 'mp_start_method' meant"),
        (dict(auto_scale_lr=dict(enabled=True)), "is 'enable' meant"),
        (
            dict(optim_wrapper=dict(paramwise_cfg=dict(custom_key={}))),
            "paramwise_cfg.custom_key is read by nothing: is 'custom_keys' meant",
        ),
        (
            dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'a.b': dict(lr_multi=1)}))),
            "is 'lr_mult' meant",
        ),
    ],
)
def test_what_mmengine_would_not_read(settings, words):
    with pytest.raises(LocalLearningError, match=words):
        check_types(Config(settings))


def test_what_others_read_passes():
    check_types(
        Config(
            dict(
                env_cfg=dict(cudnn_benchmark=True, mine=1),
                optim_wrapper=dict(
                    paramwise_cfg=dict(
                        num_layers=12,
                        layer_decay_rate=0.7,
                        custom_keys=dict(backbone=dict(lr_mult=0.1, betas=(0.9, 0.95))),
                    )
                ),
            )
        )
    )


def test_a_setting_beside_the_one_it_resembles_is_told():
    with mock.patch('fba_mm.preflight.config_types.print_log') as told:
        check_types(Config(dict(custom_hooks=[], train_pipeline=[])))
        assert not told.called
        check_types(Config(dict(custom_hooks=[], custom_hook=[dict(type='FBAHook')])))
    (said, *_), _ = told.call_args
    assert said.startswith('the config has custom_hook beside custom_hooks, and nothing reads it')


def test_no_argument_is_taken_and_left():
    """In the code of all classes: what ``__init__`` takes is used, and what it keeps is read."""
    folder = Path(fba_mm.__file__).parent
    trees = [
        ast.parse(path.read_text()) for path in folder.rglob('*.py') if '.mim' not in str(path)
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    # Attributes that are asked for by name, or that others read.
    read |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    read |= {'num_samples', 'total_size', '_maybe_opt_step'}  # For MMEngine and torch.
    left = []
    for node in nodes:
        if not (isinstance(node, ast.FunctionDef) and node.name == '__init__'):
            continue
        inner = [one for statement in node.body for one in ast.walk(statement)]
        used = {one.id for one in inner if isinstance(one, ast.Name)}
        taken = [one.arg for one in (*node.args.args[1:], *node.args.kwonlyargs)]
        left += [f'{node.lineno}: {name}' for name in taken if name not in used]
        left += [
            f'{one.lineno}: self.{one.attr}'
            for one in inner
            if isinstance(one, ast.Attribute)
            and isinstance(one.ctx, ast.Store)
            and one.attr not in read
        ]
    # One of a family's builders gets a level, of which there is one; one kind of reference polls.
    assert {one.partition(': ')[2] for one in left} == {'level', 'on_death'}
