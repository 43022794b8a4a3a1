"""Back-propagation with the backbone recomputed: the same training in less memory."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper

from fba_mm import AmpLocalOptimWrapper, LocalLearningError, LocalOptimWrapper
from fba_mm.analysis import StorageTracker

from ..conftest import batch, build, needs_float16, own_head, retinanet
from ..local_training import Trainer
from ..segmentation import labelled_batch, segmentor
from ..several_processes import run_in_processes
from ..super_resolution import editor, patches, swinir
from .test_partition.family_checks import class_batch, classifier

SWIN = dict(
    type='mmpretrain.SwinTransformer',
    arch=dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 4]),
    img_size=64,
    window_size=2,
    drop_path_rate=0.3,
)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def wrapped(cfg: dict, recompute, key: str = 'backbone', num_modules=1) -> dict:
    cfg = copy.deepcopy(cfg)
    cfg[key] = dict(
        type='LocalBackbone', backbone=cfg[key], num_modules=num_modules, recompute=recompute
    )
    return cfg


def same(a, b) -> bool:
    return len(a) == len(b) > 0 and all(x is y or torch.equal(x, y) for x, y in zip(a, b))


CASES = dict(
    one=(retinanet(18, None), batch, 1),
    number=(retinanet(50, None), batch, 3),
    frozen=(retinanet(50, None, frozen_stages=1, norm_eval=True), batch, 2),
    joined_with_frozen=(retinanet(18, None, frozen_stages=1), batch, ['layer2.1']),
    stages=(retinanet(18, None), batch, 'stages'),
    with_cp=(retinanet(18, None, with_cp=True, frozen_stages=1, norm_eval=True), batch, 2),
    drop_path=(classifier(SWIN, None, 64, neck=True), class_batch, 'blocks'),
    segmentor=(segmentor(None), labelled_batch, 2),
    skips=(editor(None, network=swinir), patches, 2),
)


@pytest.mark.parametrize('name', CASES)
def test_trains_bit_by_bit_as_the_plain_model(name):
    """With a plain optimizer wrapper, no hook, over several steps, with EMA and accumulation."""
    cfg, data, recompute = CASES[name]
    key = 'generator' if 'generator' in cfg else 'backbone'
    plain, recomputing = build(cfg), build(wrapped(cfg, recompute, key))
    assert same(list(plain.parameters()), list(recomputing.parameters()))
    averages = [ExponentialMovingAverage(model) for model in (plain, recomputing)]
    wrappers = [
        OptimWrapper(sgd(model.parameters()), accumulative_counts=2)
        for model in (plain, recomputing)
    ]
    for i in range(4):
        logs = []
        for model, wrapper, average in zip((plain, recomputing), wrappers, averages):
            torch.manual_seed(i)
            logs.append(model.train_step(data(), wrapper))
            average.update_parameters(model)
        assert logs[0].keys() == logs[1].keys()
        assert all(torch.equal(logs[0][k], logs[1][k]) for k in logs[0])
    assert same(list(plain.parameters()), list(recomputing.parameters()))
    assert same(list(plain.buffers()), list(recomputing.buffers()))
    assert same(list(averages[0].parameters()), list(averages[1].parameters()))


@pytest.mark.parametrize('dtype', ['bfloat16', pytest.param('float16', marks=needs_float16)])
def test_in_mixed_precision(dtype):
    gradients = []
    for cfg in (retinanet(18, None), wrapped(retinanet(18, None), 'blocks')):
        model = build(cfg)
        wrapper = AmpLocalOptimWrapper(
            optimizer=sgd(model.parameters()), dtype=dtype, apply='end', loss_scale=128.0
        )
        found = {}
        wrapper.optimizer.register_step_pre_hook(
            lambda *_, m=model, f=found: f.update(
                (n, p.grad.clone()) for n, p in m.backbone.named_parameters()
            )
        )
        model.train_step(batch(), wrapper)
        gradients.append(list(found.values()))
    assert same(*gradients)


@pytest.mark.parametrize('apply', ['eager', 'end'])
@pytest.mark.parametrize('recompute', ['blocks', 1, ['layer1.0', 'layer3.0']])
def test_local_modules_that_recompute_train_the_same(recompute, apply):
    cfg = retinanet(18, 3, auxiliary=own_head())
    recomputing = copy.deepcopy(cfg)
    recomputing['backbone']['recompute'] = recompute
    trainers = [Trainer(build(c), LocalOptimWrapper, sgd, apply=apply) for c in (cfg, recomputing)]
    for i in range(3):
        assert trainers[0].step(batch(seed=i)) == trainers[1].step(batch(seed=i))
        assert trainers[0].log == trainers[1].log
    models = [trainer.model for trainer in trainers]
    assert same(*(list(model.parameters()) for model in models))
    assert same(*(list(model.buffers()) for model in models))


BY_IMAGE = dict(
    detector=(retinanet(18, None, frozen_stages=1, norm_eval=True), batch),
    transformer=(classifier(dict(SWIN, drop_path_rate=0.0), None, 64, neck=True), class_batch),
    skips=(editor(None, network=swinir), patches),
)


@pytest.mark.slow
@pytest.mark.parametrize('name', BY_IMAGE)
def test_image_by_image(name):
    """The same up to the order of sums, in less memory."""
    cfg, data = BY_IMAGE[name]
    key = 'generator' if 'generator' in cfg else 'backbone'
    whole, one = wrapped(cfg, 2, key), wrapped(cfg, 2, key)
    one[key]['recompute_batch_size'] = 1
    found = []
    for settings in (whole, one):
        model = build(settings)
        wrapper = OptimWrapper(sgd(model.parameters()))
        logs = [float(model.train_step(data(), wrapper)['loss']) for _ in range(3)]
        with StorageTracker() as tracker:
            sum(f.sum() for f in model.get_submodule(key)(torch.rand(4, 3, 128, 128))).backward()
        found.append((logs, [p.detach() for p in model.parameters()], tracker.peak))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1]))
    assert found[1][2] < 0.8 * found[0][2]


def test_images_that_are_tied_together_or_drawn_for_stay_together():
    for cfg in (retinanet(18, None), classifier(SWIN, None, 64, neck=True)):
        one = wrapped(cfg, 'blocks')
        one['backbone']['recompute_batch_size'] = 1
        results = []
        for settings in (cfg, one):
            model = build(settings)
            torch.manual_seed(3)
            results.append(model.backbone(torch.rand(2, 3, 64, 64)))
        assert same(*results)


def with_recomputed_head(cfg: dict) -> dict:
    """Of a detector whose neck and head have norms with running statistics."""
    cfg = copy.deepcopy(cfg)
    for key in ('neck', 'bbox_head'):
        cfg[key].update(type='Recomputed', of=cfg[key]['type'])
    return cfg


@pytest.mark.parametrize('num_modules', [1, 3])
def test_neck_and_head(num_modules):
    """By themselves and shared by the modules, the same bits in less memory."""
    cfg = retinanet(18, num_modules)
    cfg['neck']['norm_cfg'] = dict(type='BN')
    cfg['bbox_head'].update(norm_cfg=dict(type='BN'), stacked_convs=3)
    trainers = [
        Trainer(build(c), LocalOptimWrapper, sgd, apply='eager')
        for c in (cfg, with_recomputed_head(cfg))
    ]
    for i in range(2):
        assert trainers[0].step(batch(seed=i)) == trainers[1].step(batch(seed=i))
    models = [trainer.model for trainer in trainers]
    assert isinstance(models[1].neck, type(models[0].neck))
    assert same(*(list(model.parameters()) for model in models))
    assert same(*(list(model.buffers()) for model in models))
    peaks = []
    for trainer in trainers:
        with StorageTracker() as tracker:
            trainer.step(batch(256))
        peaks.append(tracker.peak)
    assert peaks[1] < 0.95 * peaks[0]


def trained_in_parallel(rank: int, cfg: dict) -> list:
    from mmengine.model import MMDistributedDataParallel

    model = MMDistributedDataParallel(build(cfg), device_ids=None)
    wrapper = OptimWrapper(sgd(model.parameters()), accumulative_counts=2)
    for i in range(2):
        model.train_step(batch(seed=2 * i + rank), wrapper)
    return [p.detach() for p in model.parameters()] + list(model.buffers())


@pytest.mark.slow
def test_in_several_processes_with_the_stock_wrapper():
    plain = retinanet(18, None)
    expected, found = (
        run_in_processes(2, trained_in_parallel, cfg) for cfg in (plain, wrapped(plain, 3))
    )
    assert all(map(same, expected, found))


def peak(cfg: dict, data: dict, local: bool = False) -> int:
    model = build(cfg)
    if local:
        step = Trainer(model, LocalOptimWrapper, sgd, apply='eager').step
    else:
        wrapper = OptimWrapper(sgd(model.parameters()))

        def step(data):
            model.train_step(data, wrapper)

    step(data)
    with StorageTracker() as tracker:
        step(data)
    return tracker.peak


@pytest.mark.slow
def test_it_saves_memory():
    cfg = retinanet(50, None, base_channels=16, stem_channels=16)
    data = batch(128)
    plain = peak(cfg, data)
    finest, few, checkpointed = (
        peak(c, data)
        for c in (
            wrapped(cfg, 'blocks'),
            wrapped(cfg, 4),
            retinanet(50, None, base_channels=16, stem_channels=16, with_cp=True),
        )
    )
    assert max(finest, few) < 0.7 * plain
    # The stem, which with_cp keeps, is recomputed too.
    assert finest < checkpointed
    local = retinanet(50, 2, base_channels=16, stem_channels=16, auxiliary=own_head())
    both = copy.deepcopy(local)
    both['backbone']['recompute'] = 'blocks'
    assert peak(both, data, local=True) < 0.8 * peak(local, data, local=True)


def test_frozen_spans_keep_nothing():
    cfg = wrapped(retinanet(18, None, frozen_stages=2), 'blocks')
    backbone = build(cfg).backbone
    runs = []
    backbone.backbone.layer1[0].register_forward_hook(
        lambda *_: runs.append(torch.is_grad_enabled())
    )
    features = backbone(torch.rand(2, 3, 64, 64))
    assert not features[1].requires_grad and features[2].requires_grad
    sum(f.sum() for f in features[2:]).backward()
    assert runs == [False]


def test_an_input_that_is_written_to_is_found_out():
    backbone = build(wrapped(retinanet(18, None), 'blocks')).backbone
    features = backbone(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        features[1].mul_(2)
    with pytest.raises((LocalLearningError, RuntimeError), match='in ?place'):
        sum(f.sum() for f in features).backward()


@pytest.mark.parametrize(
    'recompute, message',
    [
        (0, 'give 1 to 9'),
        (10, 'give 1 to 9'),
        (True, 'recompute=True'),
        ('layers', "'layers'"),
        (['layer1.0', 'layer9.0'], r"\['layer9.0'\].*stem, layer1.0"),
        (1.5, 'recompute=1.5'),
    ],
)
def test_what_cannot_be(recompute, message):
    with pytest.raises(LocalLearningError, match=message):
        build(wrapped(retinanet(18, None), recompute))
    cfg = wrapped(retinanet(18, None), 'blocks')
    cfg['backbone']['recompute_batch_size'] = 0
    with pytest.raises(LocalLearningError, match='recompute_batch_size=0: give a number of images'):
        build(cfg)
