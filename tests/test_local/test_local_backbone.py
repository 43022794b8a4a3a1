"""Cutting, training, evaluating, copying and loading a wrapped backbone."""

import copy
import pickle
import re
from unittest import mock

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local import LocalStep

from ..conftest import batch, build, own_head, retinanet
from ..local_training import Trainer


def resnet(**settings) -> dict:
    """The backbone's config alone."""
    return retinanet(num_modules=None, **settings)['backbone']


def on_levels(cfg: dict, out_indices: tuple) -> dict:
    """The same detector on some of the backbone's levels."""
    backbone = cfg['backbone'].get('backbone', cfg['backbone'])
    backbone['out_indices'] = out_indices
    channels = cfg['neck']['in_channels']
    cfg['neck'].update(in_channels=[channels[i] for i in out_indices], start_level=0, num_outs=5)
    first = 4 * 2 ** out_indices[0]
    cfg['bbox_head']['anchor_generator']['strides'] = [first * 2**i for i in range(5)]
    return cfg


def settled(cfg: dict) -> nn.Module:
    """A model whose running statistics are not those of its initialization."""
    model = build(cfg)
    with torch.no_grad():
        for seed in range(2):
            losses_of(model, batch(seed=seed))
    return model


def norms(module: nn.Module) -> list:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


# What a known backbone may look like; none of it changes how the whole is trained.
VARIANTS = dict(
    plain=dict(depth=18),
    bottleneck=dict(depth=50),
    deep_stem=dict(depth=18, type='mmdet.ResNetV1d'),
    grouped=dict(depth=50, type='mmdet.ResNeXt', groups=2, base_width=4),
    res2net=dict(depth=50, type='mmdet.Res2Net', scales=2, base_width=4),
    resnest=dict(depth=50, type='mmdet.ResNeSt', reduction_factor=2),
    group_norm=dict(depth=18, norm='GN'),
    norm_eval=dict(depth=18, norm_eval=True),
    frozen=dict(depth=18, frozen_stages=1),
    checkpointed=dict(depth=18, with_cp=True),
    three_stages=dict(depth=18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1)),
)


CASES = [(variant, (0, 1, 2, 3)) for variant in sorted(VARIANTS) if variant != 'three_stages']
CASES += [('plain', (1, 2, 3)), ('plain', (3,)), ('bottleneck', (1, 2, 3))]
CASES += [('three_stages', (0, 2))]


def plain_and_wrapped(variant: str, out_indices: tuple):
    """The unwrapped model, and one that is trained locally, with the same weights."""
    plain, wrapped = (
        on_levels(retinanet(num_modules=num_modules, **VARIANTS[variant]), out_indices)
        for num_modules in (None, 'blocks')
    )
    plain, wrapped = settled(plain), build(wrapped)
    wrapped.load_state_dict(plain.state_dict())
    return plain, wrapped, Trainer(wrapped)


def losses_of(model: nn.Module, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def same(a, b) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize('variant, out_indices', CASES)
def test_evaluation_is_the_plain_backbones(variant, out_indices):
    plain, wrapped, trainer = plain_and_wrapped(variant, out_indices)
    with torch.no_grad():  # While training: batch statistics, and nothing to learn from.
        a, b = losses_of(wrapped, batch(seed=1)), losses_of(plain, batch(seed=1))
    assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    plain.train(False), wrapped.train(False)
    a, b = losses_of(wrapped, batch(seed=2)), losses_of(plain, batch(seed=2))
    assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    assert not trainer.hook._log

    images = plain.data_preprocessor(batch(seed=5), training=False)['inputs']
    maps = wrapped.backbone(images)
    assert len(maps) == len(out_indices) and maps[-1].requires_grad
    assert same(maps, plain.backbone(images))
    for actual, expected in zip(wrapped.val_step(batch(seed=5)), plain.val_step(batch(seed=5))):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(actual.pred_instances[key], expected.pred_instances[key])
        assert len(expected.pred_instances) > 0


@pytest.mark.parametrize('variant, out_indices', CASES)
def test_the_last_modules_loss_is_the_plain_models(variant, out_indices):
    """Isolation cuts gradients, not values; and whatever is trained gets a gradient."""
    plain, wrapped, trainer = plain_and_wrapped(variant, out_indices)
    with mock.patch.object(wrapped, 'parse_losses', wraps=wrapped.parse_losses) as parsed:
        gradients = trainer.gradients(batch())
    assert parsed.call_count == wrapped.backbone.num_modules
    actual, expected = parsed.call_args[0][0], losses_of(plain, batch())
    assert actual.keys() == expected.keys()
    assert all(same(actual[name], expected[name]) for name in actual)

    assert gradients.keys() == {n for n, p in wrapped.named_parameters() if p.requires_grad}
    local = {name: value for name, value in trainer.log.items() if name.endswith('.loss')}
    assert local.keys() == {f'local_{i}.loss' for i in range(1, wrapped.backbone.num_modules)}
    assert all(value > 0 and torch.isfinite(value) for value in local.values())


@pytest.mark.parametrize('num_modules', [3, 'stages', 'blocks'])
def test_a_stage_that_nobody_asks_for_trains_nowhere(num_modules):
    plain, wrapped = (
        build(on_levels(retinanet(num_modules=k), (0, 2))) for k in (None, num_modules)
    )
    plain.parse_losses(losses_of(plain, batch()))[0].backward()
    trained = {n for n, p in plain.backbone.named_parameters() if p.grad is not None}
    assert not any(n.startswith('layer4') for n in trained)
    start = 'backbone.backbone.'
    gradients = Trainer(wrapped).gradients(batch())
    assert {n[len(start) :] for n in gradients if n.startswith(start)} == trained


@pytest.mark.parametrize('scope', ['past', 'all'])
@pytest.mark.parametrize('head', ['shared', 'own'])
def test_running_statistics_see_what_evaluation_sees(scope, head):
    """One update per step, by the pass that the plain model makes too."""
    auxiliary = dict(type='SLM') if head == 'shared' else own_head()
    cfgs = retinanet(num_modules=None), retinanet(num_modules='blocks', auxiliary=auxiliary)
    for cfg in cfgs:
        cfg['neck']['norm_cfg'] = dict(type='BN')
    plain, wrapped = map(build, cfgs)
    wrapped.load_state_dict(plain.state_dict())
    trainer = Trainer(wrapped, scope=scope)
    for step in range(1, 3):
        losses_of(plain, batch(seed=step))
        trainer.gradients(batch(seed=step))
        for a, b in ((wrapped.backbone.backbone, plain.backbone), (wrapped.neck, plain.neck)):
            assert len(norms(a)) == len(norms(b)) > 0
            for norm, expected in zip(norms(a), norms(b)):
                assert norm.num_batches_tracked == step
                assert torch.equal(norm.running_mean, expected.running_mean)
                assert torch.equal(norm.running_var, expected.running_var)
    assert all(norm.track_running_stats for norm in norms(wrapped))


@pytest.mark.parametrize('frozen_stages', [0, 1, 2, 3])
def test_frozen_stages_join_the_module_behind_them(frozen_stages):
    trained = 8 - 2 * frozen_stages  # Blocks of a ResNet-18 that are left.
    wrapped = LocalBackbone(resnet(frozen_stages=frozen_stages), 'blocks')
    assert wrapped.num_modules == trained
    assert wrapped.module_segments[0] == range(10 - trained)

    model = build(retinanet(num_modules=2, frozen_stages=frozen_stages))
    wrapped = model.backbone
    before = copy.deepcopy(wrapped.backbone.state_dict())
    trainer = Trainer(model)
    assert set(trainer.gradients(batch())) == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    trainer.step(batch())
    assert trainer.log['local_1.loss'] > 0
    frozen = ('conv1.', 'bn1.') + tuple(f'layer{i + 1}.' for i in range(frozen_stages))
    changed = {
        n for n, value in wrapped.backbone.state_dict().items() if not torch.equal(value, before[n])
    }
    assert changed == {n for n in before if not n.startswith(frozen)}


def test_norm_eval_concerns_the_backbone_alone():
    model = build(retinanet(num_modules=4, norm_eval=True))
    wrapped = model.backbone
    model.eval()
    model.train()
    assert norms(wrapped.backbone) and norms(wrapped.auxiliary)
    assert not any(norm.training for norm in norms(wrapped.backbone))
    assert all(norm.training for norm in norms(wrapped.auxiliary))
    Trainer(model, scope='all').step(batch())
    assert all(norm.num_batches_tracked == 0 for norm in norms(wrapped.backbone))
    assert all(norm.running_mean.eq(0).all() for norm in norms(wrapped.backbone))
    assert all(norm.num_batches_tracked == 1 for norm in norms(wrapped.auxiliary))
    assert not any(norm.training for norm in norms(wrapped.backbone))


@pytest.mark.parametrize('norm_cfg', [dict(type='BN', requires_grad=False), dict(type='BN')])
def test_auxiliary_norms_train_where_the_backbones_are_fixed(norm_cfg):
    wrapped = LocalBackbone(resnet(norm_cfg=norm_cfg, norm_eval=True), 2)
    assert all(p.requires_grad for p in wrapped.auxiliary.parameters())


# Numbers of modules


@pytest.mark.parametrize('depth, blocks', [(18, 9), (34, 17), (50, 17), (101, 34), (152, 51)])
def test_finest_cut_is_stem_and_residual_blocks(depth, blocks):
    # Table 2 of the FBA paper: 17 (ResNet-34 and 50), 34 and 51 modules.
    wrapped = LocalBackbone(resnet(depth=depth, base_channels=4, stem_channels=4), 'blocks')
    assert wrapped.num_modules == blocks
    assert len(wrapped.auxiliary) == blocks - 1
    assert wrapped.module_segments == [range(i, i + 1) for i in range(blocks)]
    assert LocalBackbone(resnet(depth=depth, base_channels=4), 'stages').num_modules == 4


@pytest.mark.parametrize('num_modules', [1, 2, 5, 9])
def test_number_of_modules(num_modules):
    wrapped = LocalBackbone(resnet(), num_modules)
    assert wrapped.num_modules == num_modules
    assert len(wrapped.auxiliary) == num_modules - 1
    assert len(wrapped.describe().splitlines()) == num_modules
    assert "model's own loss" in wrapped.describe().splitlines()[-1]
    assert ('plain back-propagation' in wrapped.describe()) == (num_modules == 1)


def test_description():
    head = dict(type='LightRetinaNet', num_classes=3, channels=16)
    wrapped = LocalBackbone(resnet(), [3, 6], auxiliary=dict(type='SLM', head=head))
    first, second = wrapped.describe().splitlines()
    count = sum(p.numel() for p in wrapped.auxiliary.parameters()) / 1e6
    saved = [footprint.saved_bytes for footprint in wrapped.footprints]
    share = round(100 * sum(saved[:3]) / sum(saved))
    assert first == (
        f'  module 1: stem ... layer1.1, {share}% of the activations, trained by SLM '
        f'with {count:.2f} M parameters of its own, LightRetinaNet among them'
    )
    assert second.startswith(
        f'  module 2: layer2.0 ... layer4.1, {100 - share}% of the activations'
    )
    shared = LocalBackbone(resnet(), [3, 6]).describe().splitlines()[0]
    assert shared.endswith("parameters of its own, before the model's own head")


def test_modules_of_the_stages():
    wrapped = LocalBackbone(resnet(), 'stages')
    names = [[wrapped.segments[i].name for i in module] for module in wrapped.module_segments]
    assert names == [
        ['stem', 'layer1.0', 'layer1.1'],
        ['layer2.0', 'layer2.1'],
        ['layer3.0', 'layer3.1'],
        ['layer4.0', 'layer4.1'],
    ]


# What a user gets wrong


@pytest.mark.parametrize(
    'num_modules, message',
    [
        (0, r'num_modules=0: give 1 \(back-propagation\) to 9'),
        (-1, r'num_modules=-1: give 1 .* to 9'),
        (10, r'num_modules=10: give 1 .* to 9'),
        (True, r"num_modules=True: give a number, 'blocks', 'stages', a list"),
        (2.5, r"num_modules=2.5: give a number, 'blocks', 'stages', a list"),
        ('foo', r"num_modules='foo': give a number, 'blocks', 'stages', a list"),
        (None, r"num_modules=None: give a number, 'blocks', 'stages', a list"),
    ],
)
def test_wrong_number_of_modules(num_modules, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        LocalBackbone(resnet(), num_modules)
    assert '\n' not in str(caught.value)


def test_too_many_modules_for_what_is_not_frozen():
    with pytest.raises(LocalLearningError, match=r'num_modules=5: .* to 4.*5 of 9 are frozen'):
        LocalBackbone(resnet(frozen_stages=2), 5)
    for num_modules in (2, 'stages', 'blocks'):
        with pytest.raises(LocalLearningError, match='lower frozen_stages'):
            LocalBackbone(resnet(frozen_stages=4), num_modules)


def test_errors_stay_readable_through_the_registry():
    with pytest.raises(LocalLearningError, match='num_modules=0: give 1'):
        MODELS.build(dict(type='LocalBackbone', backbone=resnet(), num_modules=0))


class OwnForward(ResNet):
    """Runs its layers in a way of its own."""

    def forward(self, x):
        return super().forward(x.flip(-1))


class OwnInit(ResNet):
    """Runs as its parent does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def test_unknown_backbone():
    small = dict(
        num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(8,)
    )
    stage = dict(
        num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(8, 8)
    )
    three = dict(stage, num_branches=3, num_blocks=(1,) * 3, num_channels=(8,) * 3)
    four = dict(stage, num_branches=4, num_blocks=(1,) * 4, num_channels=(8,) * 4)
    hrnet = dict(
        type='mmdet.HRNet', extra=dict(stage1=small, stage2=stage, stage3=three, stage4=four)
    )
    with pytest.raises(LocalLearningError, match='HRNet cannot be cut: .*families.*ResNet') as info:
        LocalBackbone(hrnet, 4)
    assert '@fba_mm.backbone_family' in str(info.value)
    # Back-propagation needs no cut.
    assert LocalBackbone(hrnet, 1).num_modules == 1


def test_a_subclass_is_known_by_its_forward():
    settings = {k: v for k, v in resnet().items() if k != 'type'}
    assert LocalBackbone(dict(type=OwnInit, **settings), 4).num_modules == 4
    with pytest.raises(LocalLearningError, match='OwnForward cannot be cut'):
        LocalBackbone(dict(type=OwnForward, **settings), 4)


def test_training_without_the_hook_is_refused():
    model = build(retinanet(num_modules=4))
    with pytest.raises(LocalLearningError, match="FBAHook.*custom_hooks = .*'FBAHook'"):
        losses_of(model, batch())
    # Neither back-propagation nor evaluation needs one.
    assert losses_of(build(retinanet(num_modules=1)), batch())
    with torch.no_grad():
        assert losses_of(model, batch())
    assert losses_of(model.eval(), batch())


def test_a_pass_without_targets_trains_nothing():
    model = build(retinanet(num_modules=4))
    trainer = Trainer(model)
    data = model.data_preprocessor(batch(), training=True)
    output = model(data['inputs'], mode='tensor')
    assert not trainer.hook._log
    assert all(p.grad is None for p in model.parameters())
    sum(level.sum() for level in output[0]).backward()
    assert model.backbone.backbone.conv1.weight.grad is not None


# What users reach for


def test_layers_and_attributes_of_the_wrapped_backbone():
    backbone = build(retinanet(num_modules=4, frozen_stages=1)).backbone
    wrapped = backbone.backbone
    assert backbone.layer1 is wrapped.layer1 and backbone.norm1 is wrapped.norm1
    assert backbone.frozen_stages == 1 and not hasattr(backbone, 'layer5')
    with pytest.raises(AttributeError, match="'LocalBackbone' object has no attribute 'layer5'"):
        _ = backbone.layer5
    backbone.frozen_stages = -1
    assert wrapped.frozen_stages == -1 and 'frozen_stages' not in vars(backbone)
    backbone.conv1 = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)
    assert wrapped.conv1 is backbone.conv1
    # What it has itself stays its own, as does what nobody has.
    backbone.step, backbone.of_a_user = None, 1
    assert not hasattr(wrapped, 'of_a_user') and 'step' in vars(backbone)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert twin.layer1 is twin.backbone.layer1 is not backbone.layer1
        assert twin.state_dict().keys() == backbone.state_dict().keys()


def plain(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def frozen(model, *prefixes, trained=False):
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(trained)


def changes(trainer, data):
    """Names of the parameters that a step changes."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step(data)
    return {
        name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }


@pytest.mark.parametrize('auxiliary', [dict(type='SLM', blocks_per_stage=0), own_head()])
def test_freezing_all_that_is_named_backbone_and_back(auxiliary):
    """As hooks do it, between two steps. Auxiliary networks follow their modules."""
    model = build(retinanet(num_modules=4, auxiliary=auxiliary))
    trainer = Trainer(model, optimizer=plain)
    every = changes(trainer, batch())
    of_backbone = {name for name in every if name.startswith('backbone.')}
    assert {name.split('.')[2] for name in of_backbone if '.auxiliary.' not in name} >= {
        'conv1',
        'layer1',
        'layer2',
        'layer3',
        'layer4',
    }

    # Exactly as in the stock model, whose neck and head alone learn.
    frozen(model, 'backbone')
    stock = build(retinanet(num_modules=None))
    stock.load_state_dict(
        {
            name.replace('backbone.backbone', 'backbone'): value
            for name, value in model.state_dict().items()
            if '.auxiliary.' not in name
        }
    )
    frozen(stock, 'backbone')
    assert changes(trainer, batch()) == every - of_backbone
    stock.train_step(batch(), OptimWrapper(plain(stock.parameters())))
    for name, parameter in stock.named_parameters():
        same = name.replace('backbone.', 'backbone.backbone.', 1)
        torch.testing.assert_close(model.get_parameter(same), parameter)

    # One module alone, by the layers that a user knows: its auxiliary network comes with it.
    index = next(
        k
        for k in range(3)
        if any(
            model.backbone.segments[i].name.startswith('layer2')
            for i in model.backbone.module_segments[k]
        )
    )
    for parameter in model.backbone.layer2.parameters():
        parameter.requires_grad_()
    changed = changes(trainer, batch())
    assert {name.split('.')[2] for name in changed if name.startswith('backbone.backbone')} == {
        'layer2'
    }
    assert {name for name in every if name.startswith(f'backbone.auxiliary.{index}.')} <= changed
    # Of other modules', nobody waits for a gradient: several processes would.
    assert {
        name.split('.')[2]
        for name, p in model.named_parameters()
        if name.startswith('backbone.auxiliary.') and p.requires_grad
    } <= {str(index)}

    frozen(model, 'backbone', trained=True)
    assert changes(trainer, batch()) >= every


def test_a_frozen_module_keeps_no_graph():
    model = build(retinanet(num_modules=4))
    trainer = Trainer(model)
    frozen(model, 'backbone.backbone.conv1', 'backbone.backbone.bn1', 'backbone.backbone.layer1')
    first = model.backbone.module_segments[0]
    names = [model.backbone.segments[i].name for i in first]
    assert all(name == 'stem' or name.startswith('layer1') for name in names)
    seen = []
    run = type(model.backbone)._run_module

    def watched(self, index, x, kept):
        result = run(self, index, x, kept)
        seen.append(result[0].requires_grad)
        return result

    with mock.patch.object(type(model.backbone), '_run_module', watched), mock.patch.object(
        model.backbone.auxiliary[0], 'loss'
    ) as loss:
        trainer.step(batch())
    assert seen[0] is False and seen[-1] is True and not loss.called


# Copies and checkpoints


def test_a_copy_has_modules_of_its_own():
    model = build(retinanet(num_modules=4))
    trainer = Trainer(model)
    trainer.step(batch())
    twin = copy.deepcopy(model)  # As the EMA hook makes one, of a model that is being trained.
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    kept = copy.deepcopy(twin.state_dict())
    for seed in range(2):
        trainer.step(batch(seed=seed))
    assert all(torch.equal(value, kept[name]) for name, value in twin.state_dict().items())
    assert trainer.log

    # Each of its segments runs its own layers, as those of the unwrapped model with its weights.
    plain = build(retinanet(num_modules=None))
    plain.load_state_dict(
        {
            name.replace('backbone.backbone.', 'backbone.'): value
            for name, value in kept.items()
            if '.auxiliary.' not in name
        }
    )
    x = torch.rand(2, 3, 64, 64)
    segments = twin.backbone.segments
    with torch.no_grad():
        expected = plain.eval().backbone(x)
        twin.eval()
        assert all(torch.equal(a, b) for a, b in zip(twin.backbone(x), expected))
        for segment in segments:
            x = segment.run(twin.backbone.backbone, x)
        assert torch.equal(x, expected[-1])


@pytest.mark.parametrize('size', [None, 1])
def test_losses_of_a_copy_train_nobody(size):
    model = build(retinanet(num_modules=4))
    model.backbone.head_batch_size = size
    trainer = Trainer(model)
    twin = copy.deepcopy(model)
    losses_of(twin, batch())
    assert not trainer.hook._log
    assert all(p.grad is None for m in (model, twin) for p in m.parameters())
    assert not isinstance(model.backbone.step, LocalStep)


@pytest.fixture(scope='module')
def stock_state():
    model = build(retinanet(num_modules=None))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model.state_dict()


def test_state_dict_keys(stock_state):
    keys = set(build(retinanet(num_modules=4)).state_dict())
    auxiliary = {key for key in keys if key.startswith('backbone.auxiliary.')}
    assert {key.split('.')[2] for key in auxiliary} == {'0', '1', '2'}
    assert keys - auxiliary == {
        key.replace('backbone.', 'backbone.backbone.', 1) for key in stock_state
    }


def load_with_torch(model, state):
    result = model.load_state_dict(state, strict=False)
    return sorted(result.missing_keys + result.unexpected_keys)


def load_with_mmengine(model, state):
    try:
        load_state_dict(model, state, strict=True)
    except RuntimeError as error:
        keys = re.findall(r': ([^\s,]+(?:, [^\s,]+)*)', str(error))  # 'missing keys in ...: a, b'
        return sorted(key for part in keys for key in part.split(', '))
    return []


@pytest.mark.parametrize('load', [load_with_torch, load_with_mmengine])
def test_stock_checkpoint_loads(stock_state, load):
    model = build(retinanet(num_modules=4))
    fresh = copy.deepcopy(model.backbone.auxiliary.state_dict())
    given = dict(stock_state)
    assert load(model, given) == []
    assert given.keys() == stock_state.keys()
    loaded = model.state_dict()
    for key, value in stock_state.items():
        assert torch.equal(loaded[key.replace('backbone.', 'backbone.backbone.', 1)], value)
    for key, value in fresh.items():
        assert torch.equal(loaded[f'backbone.auxiliary.{key}'], value)


@pytest.mark.parametrize('load', [load_with_torch, load_with_mmengine])
def test_what_else_is_missing_or_unexpected_is_reported(stock_state, load):
    model = build(retinanet(num_modules=4))
    given = dict(stock_state)
    given['backbone.foo'] = given.pop('backbone.layer1.0.conv1.weight')
    del given['neck.lateral_convs.0.conv.bias']
    assert load(model, given) == [
        'backbone.backbone.layer1.0.conv1.weight',
        'backbone.foo',
        'neck.lateral_convs.0.conv.bias',
    ]

    # A local checkpoint with a gap is no stock one, also after a stock one has been loaded.
    local = model.state_dict()
    assert load(model, local) == []
    gap = next(key for key in local if key.startswith('backbone.auxiliary.1.'))
    del local[gap]
    assert load(model, local) == [gap]
    without = {k: v for k, v in local.items() if not k.startswith('backbone.auxiliary.')}
    assert set(load(model, without)) >= {
        f'backbone.auxiliary.{name}' for name, _ in model.backbone.auxiliary.named_parameters()
    }


def test_backbone_alone_loads_a_stock_backbones_state(stock_state):
    prefix = 'backbone.'
    state = {k[len(prefix) :]: v for k, v in stock_state.items() if k.startswith(prefix)}
    wrapped = build(retinanet(num_modules=4)).backbone
    assert load_with_torch(wrapped, state) == load_with_mmengine(wrapped, state) == []
    assert torch.equal(wrapped.backbone.conv1.weight, state['conv1.weight'])


def test_explicit_cuts_are_where_the_config_says():
    cuts = ['layer1.0', 'layer2.1', 'layer4.0']
    backbone = build(retinanet(num_modules=cuts)).backbone
    assert [backbone.segments[module[-1]].name for module in backbone.module_segments] == [
        *cuts,
        'layer4.1',
    ]
