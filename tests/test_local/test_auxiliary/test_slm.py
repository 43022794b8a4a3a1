"""FBA's auxiliary network: which maps it puts together, and which configs it refuses."""

import pytest
import torch
from mmengine.registry import DefaultScope

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local import FeatureBank, LocalStep
from fba_mm.local.auxiliary.own_head import build_own_head, check_own_head
from fba_mm.local.auxiliary.slm import PooledShortcut

from ...conftest import batch, build, own_head, retinanet
from ...local_training import Trainer

CHANNELS, SIZES = (8, 16, 32, 64), (16, 8, 4, 2)


def slm(stage: int, **settings):
    """The auxiliary network behind a stage; -1 is the stem."""
    backbone = retinanet(num_modules=None)['backbone']
    wrapped = LocalBackbone(backbone, 'blocks', auxiliary=dict(dict(type='SLM'), **settings))
    # A module ends in the middle of each stage, and one at its end.
    return wrapped.auxiliary[0 if stage < 0 else 2 * stage + 2].train()


def step_with(bank: FeatureBank, images: int = 2, generator=None) -> LocalStep:
    return LocalStep(
        model=None,
        source=None,
        inputs=torch.zeros(images, 3, 64, 64),
        data_samples=None,
        bank=bank,
        train=None,
        generator=generator,
    )


def map_of(stage: int, images: int = 2) -> torch.Tensor:
    return torch.rand(images, CHANNELS[max(stage, 0)], SIZES[max(stage, 0)], SIZES[max(stage, 0)])


def full_bank(scope: str, images: int = 2) -> FeatureBank:
    bank = FeatureBank(scope)
    for level in range(4):
        bank.put(level, map_of(level, images))
    return bank


@pytest.mark.parametrize('bank', [FeatureBank('off'), full_bank('all')])
@pytest.mark.parametrize('stage', [-1, 0, 1, 2])
def test_maps_have_the_shapes_of_the_backbones(stage, bank):
    auxiliary = slm(stage)
    assert len(auxiliary.blocks) == 3 - stage
    x = map_of(stage)
    features = auxiliary.features(x, {} if stage < 0 else {stage: x}, step_with(bank))
    assert [f.shape for f in features] == [(2, c, s, s) for c, s in zip(CHANNELS, SIZES)]


@pytest.mark.parametrize('size', [(75, 90), (33, 64), (129, 127)])
def test_maps_of_odd_sizes_fit(size):
    backbone = retinanet(num_modules=None)['backbone']
    wrapped = LocalBackbone(backbone, 'blocks')
    image = torch.rand(2, 3, *size)
    step = LocalStep(None, None, image, None, FeatureBank('off'), None)
    expected = [level.shape for level in wrapped.eval()(image)]
    x = image
    for segment, auxiliary in zip(wrapped.segments, wrapped.auxiliary):
        x = segment.run(wrapped.backbone, x)
        levels = {} if segment.level is None else {segment.level: x}
        assert [f.shape for f in auxiliary.features(x, levels, step)] == expected


def test_where_each_map_comes_from():
    auxiliary = slm(1, bank_dropout=0.0)
    x, bank = map_of(1), full_bank('all')
    features = auxiliary.features(x, {1: x}, step_with(bank))
    assert features[0] is bank.get(0)
    assert features[1] is x
    third = auxiliary.blocks[0](x)
    torch.testing.assert_close(features[2], third + bank.get(2))
    # What the bank knows of one level is not handed on to the next.
    torch.testing.assert_close(features[3], auxiliary.blocks[1](third) + bank.get(3))


def test_more_blocks_per_stage():
    one, two = slm(1), slm(1, blocks_per_stage=2)
    count = [sum(p.numel() for p in auxiliary.parameters()) for auxiliary in (one, two)]
    assert count[1] > count[0]
    x = map_of(1)
    features = two.features(x, {1: x}, step_with(FeatureBank('off')))
    third = two.blocks[0][1](two.blocks[0][0](x))
    torch.testing.assert_close(features[2], third)
    torch.testing.assert_close(features[3], two.blocks[1](third))
    assert [f.shape[1] for f in features] == list(CHANNELS)


def test_the_own_stage_is_finished_where_it_goes_on():
    wrapped = LocalBackbone(
        retinanet(num_modules=None)['backbone'],
        'blocks',
        auxiliary=dict(type='SLM', finish_stage=True),
    )
    # The stem has no stage; of the others, every second module ends one.
    assert [auxiliary.finish is not None for auxiliary in wrapped.auxiliary] == [
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    inside, x = wrapped.auxiliary[3], map_of(1)
    features = inside.features(x, {}, step_with(full_bank('past')))
    torch.testing.assert_close(features[1], inside.finish(x))
    torch.testing.assert_close(features[2], inside.blocks[0](inside.finish(x)))


@pytest.mark.parametrize('number', [-1, 1.5, True])
def test_a_number_of_blocks_that_is_none(number):
    with pytest.raises(LocalLearningError, match=r'blocks_per_stage=.*from 0'):
        slm(1, blocks_per_stage=number)


def test_a_module_that_ends_inside_a_stage_stands_for_it():
    wrapped = LocalBackbone(retinanet(num_modules=None)['backbone'], 'blocks')
    x = map_of(1)
    inside = wrapped.auxiliary[3]  # After layer2.0.
    assert inside.cut_point.stage == 1
    features = inside.features(x, {}, step_with(full_bank('past')))
    assert features[1] is x


def test_without_a_bank_shallow_maps_are_zeros_that_take_no_memory():
    features = slm(2).features(map_of(2), {2: map_of(2)}, step_with(FeatureBank('off')))
    for feature in features[:2]:
        assert feature.eq(0).all() and feature.untyped_storage().nbytes() == 4


def test_bank_dropout_withholds_deeper_maps_from_a_share_of_the_images():
    images = 400
    x, bank = map_of(2, images), full_bank('all', images)

    def shares(dropout):
        auxiliary = slm(2, bank_dropout=dropout)
        own = auxiliary.blocks[0](x)
        shallow, second, third, deeper = auxiliary.features(
            x, {2: x}, step_with(bank, images, torch.Generator().manual_seed(0))
        )
        assert shallow is bank.get(0) and second is bank.get(1) and third is x
        with_bank = (deeper - own - bank.get(3)).abs().amax((1, 2, 3)) < 1e-5
        alone = (deeper - own).abs().amax((1, 2, 3)) < 1e-5
        assert torch.equal(with_bank, ~alone)
        return float(alone.float().mean())

    assert shares(0.0) == 0
    assert shares(1.0) == 1
    # Three standard deviations of the share among 400.
    assert shares(0.5) == pytest.approx(0.5, abs=0.075)
    assert shares(0.2) == pytest.approx(0.2, abs=0.06)


def test_an_image_is_withheld_at_all_levels_or_at_none():
    """Where the module answers alone, it answers alone for the whole pyramid."""
    images = 64
    auxiliary = slm(0)
    x, bank = map_of(0, images), full_bank('all', images)
    features = auxiliary.features(
        x, {0: x}, step_with(bank, images, torch.Generator().manual_seed(0))
    )
    alone, deeper = [], x
    for level, block in enumerate(auxiliary.blocks, start=1):
        deeper = block(deeper)
        alone.append((features[level] - deeper).abs().amax((1, 2, 3)) < 1e-5)
    assert torch.equal(alone[0], alone[1]) and torch.equal(alone[0], alone[2])


def test_an_own_head_sets_the_channels():
    auxiliary = slm(1, **own_head(channels=12))
    assert auxiliary.level_channels == [8, 16, 12, 12]
    assert [conv.in_channels for conv in auxiliary.head.neck.lateral_convs] == [16, 12, 12]
    x = map_of(1)
    features = auxiliary.features(x, {1: x}, step_with(FeatureBank('off')))
    assert [f.shape[1] for f in features] == auxiliary.level_channels
    given = own_head()
    slm(1, **given)
    assert 'in_channels' not in given['head']['neck'] and 'backbone' not in given['head']


def test_a_preprocessor_of_the_own_head_is_not_applied_twice():
    auxiliary = own_head()
    plain = Trainer(build(retinanet(num_modules=2, auxiliary=auxiliary)))
    auxiliary['head']['data_preprocessor'] = retinanet(num_modules=None)['data_preprocessor']
    given = Trainer(build(retinanet(num_modules=2, auxiliary=auxiliary)))
    plain.step(batch()), given.step(batch())
    assert given.log == plain.log


# What a user gets wrong


def without_type():
    head = own_head()['head']
    del head['type']
    return head


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(channels=16), 'auxiliary.channels=16 .*leave channels unset, or give a head'),
        (dict(loss_weight=0), 'auxiliary.loss_weight=0: give a finite number greater than 0'),
        (dict(bank_dropout=1.5), 'auxiliary.bank_dropout=1.5: give a finite number from 0 to 1'),
        (dict(bank_dropout=-0.1), 'auxiliary.bank_dropout=-0.1: give a finite number from 0 to 1'),
        (
            dict(head=dict(own_head()['head'], backbone=dict(type='mmdet.ResNet', depth=18))),
            'auxiliary.head has a backbone: leave it out',
        ),
        (dict(head=without_type()), 'auxiliary.head has no type: give the config of a model'),
        (
            dict(head=dict(own_head()['head'], type='mmdet.RetinaNett')),
            'auxiliary.head cannot be built as a mmdet.RetinaNett: .*RetinaNett.*registry',
        ),
        (
            dict(head=dict(own_head()['head'], stacked_convs=1)),
            'auxiliary.head cannot be built as a mmdet.RetinaNet: .*stacked_convs',
        ),
    ],
)
def test_configs_that_are_refused(settings, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        slm(0, **settings)
    assert '\n' not in str(caught.value)


def test_unknown_method():
    with pytest.raises((LocalLearningError, KeyError), match='SLMM'):
        LocalBackbone(retinanet(num_modules=None)['backbone'], 4, auxiliary=dict(type='SLMM'))


def test_a_head_that_does_not_fit_its_neck():
    head = own_head()
    head['head']['bbox_head']['in_channels'] = 32
    model = build(retinanet(num_modules=4, auxiliary=head))
    with pytest.raises(LocalLearningError, match='does not fit its own maps .*in_channels') as info:
        model.backbone.auxiliary[0].check(model, model.backbone)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('head', [dict(type='SLM'), own_head()])
def test_a_head_that_fits_is_left_as_it_was(head):
    model = build(retinanet(num_modules=4, auxiliary=head))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for auxiliary in model.backbone.auxiliary:
        auxiliary.check(model, model.backbone)
    assert all(m.training for m in model.backbone.auxiliary.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('place', [dict(dtype=torch.float64), dict(device='meta')])
def test_a_head_is_checked_where_it_is(place):
    """Runners move the model to their device first."""
    model = build(retinanet(num_modules=4, auxiliary=own_head())).to(**place)
    auxiliary = model.backbone.auxiliary[0]
    seen = []
    auxiliary.head.neck.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    auxiliary.check(model, model.backbone)
    weight = auxiliary.head.neck.lateral_convs[0].conv.weight
    assert {(x.device, x.dtype) for x in seen} == {(weight.device, weight.dtype)}


def test_an_own_head_with_nothing_to_learn():
    settings = dict(type='mmpretrain.ImageClassifier', head=dict(type='mmpretrain.ClsHead'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = build_own_head(settings, [8], [4])
    with pytest.raises(
        LocalLearningError, match='ImageClassifier, has nothing to learn: .*leave head'
    ):
        check_own_head(head, [8], head, head.backbone)


# Without blocks


@pytest.mark.parametrize('stage', [-1, 0, 1, 2])
def test_pooled_maps(stage):
    """Deeper maps are the module's own, averaged, with zeros for the channels that it lacks."""
    auxiliary = slm(stage, blocks_per_stage=0)
    assert not list(auxiliary.parameters())
    x = map_of(stage)
    features = auxiliary.features(x, {} if stage < 0 else {stage: x}, step_with(FeatureBank('off')))
    assert [f.shape for f in features] == [(2, c, s, s) for c, s in zip(CHANNELS, SIZES)]
    for level in range(stage + 1, 4):
        channels = x.shape[1]
        pooled = torch.nn.functional.avg_pool2d(x, x.shape[-1] // SIZES[level])
        torch.testing.assert_close(features[level][:, :channels], pooled)
        assert not features[level][:, channels:].any()


@pytest.mark.parametrize('channels, out_channels', [(5, 3), (8, 4), (7, 2)])
def test_pooled_maps_of_fewer_channels(channels, out_channels):
    """All of a module's channels are to learn: those beyond are averaged with the first ones."""
    x = torch.rand(2, channels, 4, 4, requires_grad=True)
    out = PooledShortcut(out_channels, 2)(x)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    count = -(-channels // out_channels)
    for channel in range(out_channels):
        members = [pooled[:, c] for c in range(channel, channels, out_channels)]
        torch.testing.assert_close(out[:, channel], sum(members) / count)
    out.sum().backward()
    assert (x.grad > 0).all()


def test_pooled_maps_of_odd_sizes():
    wrapped = LocalBackbone(
        retinanet(num_modules=None)['backbone'],
        'blocks',
        auxiliary=dict(type='SLM', blocks_per_stage=0),
    ).eval()
    image = torch.rand(2, 3, 75, 90)
    step = LocalStep(None, None, image, None, FeatureBank('off'), None)
    expected, x = [level.shape for level in wrapped(image)], image
    for segment, auxiliary in zip(wrapped.segments, wrapped.auxiliary):
        x = segment.run(wrapped.backbone, x)
        levels = {} if segment.level is None else {segment.level: x}
        assert [f.shape for f in auxiliary.features(x, levels, step)] == expected


def test_modules_learn_without_blocks():
    model = build(retinanet(num_modules=4, auxiliary=dict(type='SLM', blocks_per_stage=0)))
    gradients = Trainer(model).gradients(batch())
    assert all(gradients[name].abs().sum() > 0 for name, _ in model.named_parameters())


def test_blocks_that_are_refused():
    tokens = dict(
        type='mmpretrain.VisionTransformer',
        img_size=32,
        patch_size=8,
        arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=16),
    )
    with pytest.raises(LocalLearningError, match='blocks_per_stage=0 pools maps.*give 1 or more'):
        LocalBackbone(tokens, 2, auxiliary=dict(type='SLM', blocks_per_stage=0))
