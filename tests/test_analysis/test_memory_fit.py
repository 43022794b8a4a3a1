"""How many modules fit a budget, found on tensors without memory."""

import copy
import gc
from contextlib import nullcontext
from unittest import mock

import pytest
from mmdet.models.dense_heads import RetinaHead
from mmengine.config import Config
from mmengine.registry import MODELS

from fba_mm import localize
from fba_mm.analysis import TrainingStep, measure_step, memory_fit, resident_bytes
from fba_mm.analysis.memory_fit import (
    fit_modules,
    predict_memory,
    resolve_num_modules,
    young_garbage,
)
from fba_mm.analysis.operations import OperationCounter, few_slices
from fba_mm.analysis.simulated_step import SimulatedStep
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.errors import LocalLearningError
from fba_mm.localize import sliced
from fba_mm.memory_budget import check_budget, parse_memory
from fba_mm.models import sliced_focal_loss
from fba_mm.tasks import backbone_key

from ..conftest import own_head
from ..super_resolution import rdn
from .small_configs import cascade, classifier, detector, local_detector, super_resolution

SHAPE = (2, 3, 96, 96)


def changed(cfg: Config, **wrapper) -> Config:
    """A config with another optimizer wrapper."""
    cfg.optim_wrapper.update(wrapper)
    return cfg


def with_adam(cfg: Config) -> Config:
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.01)
    return cfg


CONFIGS = {
    'stock': detector,
    'shared head': local_detector,
    'own heads, eager, blocks': lambda: local_detector('blocks', light=True),
    'gradients applied at the end': lambda: local_detector(light=True, apply='end'),
    'a head that sees one image at a time': lambda: local_detector(light=True, head_batch_size=1),
    'whole bank': lambda: local_detector(scope='all'),
    'frozen stages': lambda: localize(detector(frozen_stages=1), 3),
    'activation checkpointing': lambda: localize(detector(with_cp=True), 2),
    'clipping': lambda: changed(local_detector(), clip_grad=dict(max_norm=1.0)),
    'mixed precision': lambda: changed(
        local_detector(), type='AmpLocalOptimWrapper', dtype='bfloat16'
    ),
    'Adam': lambda: with_adam(local_detector()),
    'classifier': lambda: localize(classifier('BN'), 4),
    'stock super-resolution': super_resolution,
    'super-resolution': lambda: localize(super_resolution(), 3),
    'super-resolution with many kept maps': lambda: localize(super_resolution(rdn), 'blocks'),
}


# A cascade's images are large enough for as many proposals as its samplers ask for.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'shape'),
    [*((make, SHAPE) for make in CONFIGS.values()), (cascade, (2, 3, 128, 128))],
    ids=[*CONFIGS, 'mask heads in a cascade'],
)
def test_what_is_predicted_is_what_is_measured(make, shape):
    cfg = make()
    step = TrainingStep(copy.deepcopy(cfg))
    data = synthetic_batch(step.model, shape)
    step(data)
    gc.collect()
    resident = resident_bytes(step.model, step.optim_wrapper.optimizer)
    measured = measure_step(lambda: step(data)).peak_bytes

    found = predict_memory(cfg, shape)
    assert not found.guessed_loss
    assert found.num_modules == cfg.model[backbone_key(cfg.model)].get('num_modules')
    assert found.parameters == resident['parameters']
    # Adam's count of steps is a tensor, which is real in one and none in the other.
    assert found.optimizer_state == pytest.approx(resident['optimizer_state'], rel=1e-3)
    assert found.peak == pytest.approx(measured, rel=1e-3)


@pytest.mark.slow
def test_on_a_gpu_the_optimizer_takes_all_parameters_at_once():
    """Copies of all gradients are made then: where the update is the peak, it is higher."""
    cfg = with_adam(detector())
    shape = (2, 3, 32, 32)
    on_cpu = predict_memory(cfg, shape)
    with mock.patch('fba_mm.analysis.simulated_step.get_device', lambda: 'cuda'):
        on_gpu = predict_memory(cfg, shape)
        foreach = dict(cfg.optim_wrapper.optimizer, foreach=False)
        assert predict_memory(changed(copy.deepcopy(cfg), optimizer=foreach), shape) == on_cpu
    foreach = dict(cfg.optim_wrapper.optimizer, foreach=True)
    assert on_gpu == predict_memory(changed(cfg, optimizer=foreach), shape)
    assert on_gpu.peak > on_cpu.peak


@pytest.mark.slow
def test_slices_that_are_alike_are_simulated_twice(monkeypatch):
    """With the same account of memory and operations, in fewer ops."""
    monkeypatch.setattr(sliced_focal_loss, '_CPU_SLICE_BYTES', 1 << 8)
    cfg, ops, found = local_detector(light=True), [], []
    dispatch = OperationCounter.__torch_dispatch__

    def counted(self, *args, **kwargs):
        ops[-1] += 1
        return dispatch(self, *args, **kwargs)

    monkeypatch.setattr(OperationCounter, '__torch_dispatch__', counted)
    for context in (few_slices, nullcontext):
        ops.append(0)
        with mock.patch('fba_mm.analysis.memory_fit.few_slices', context):
            found.append(predict_memory(sliced(cfg), SHAPE))
    assert found[0] == found[1]
    assert ops[0] < 0.8 * ops[1]


@pytest.mark.slow
def test_gradients_that_wait_are_counted():
    cfg = local_detector(light=True)
    once = predict_memory(cfg, SHAPE)
    twice = predict_memory(changed(cfg, accumulative_counts=2), SHAPE)
    assert twice.resident == once.resident
    assert once.peak < twice.peak <= once.peak + once.parameters


@pytest.mark.slow
def test_nothing_is_computed():
    """More than any machine has."""
    stock = classifier('BN', base_channels=64, stem_channels=64)
    stock.model.head.in_channels = 512
    cfg = localize(stock, 1)
    shape = (4, 3, 2**15, 2**15)
    one = predict_memory(cfg, shape).total
    assert one > 2**40
    cfg.model.backbone.num_modules = 'blocks'
    assert predict_memory(cfg, shape).total < 0.8 * one


@pytest.mark.slow
def test_a_loss_that_leaves_torch():
    class NumpyHead(RetinaHead):
        def loss_by_feat_single(self, cls_score, *args, **kwargs):
            cls_score.detach().numpy()
            return super().loss_by_feat_single(cls_score, *args, **kwargs)

    MODELS.register_module(name='NumpyHead', module=NumpyHead, force=True)
    cfg = local_detector()
    whole = predict_memory(cfg, SHAPE)
    cfg.model.bbox_head.type = 'NumpyHead'
    found = predict_memory(cfg, SHAPE)
    assert found.guessed_loss
    assert found.resident == whole.resident
    assert 0.8 * whole.peak < found.peak < whole.peak


def test_copies_of_simulated_tensors():
    """Detectors copy samples; torch crashed when the copied mode's references were freed twice."""
    step = SimulatedStep(detector(), SHAPE)
    with step.running():
        tensor = next(step.model.parameters()).detach()
        assert copy.deepcopy(tensor).fake_mode is tensor.fake_mode


@pytest.mark.slow
def test_what_cannot_be_simulated():
    class StubbornHead(RetinaHead):
        def forward(self, x):
            x[0].detach().numpy()
            return super().forward(x)

    MODELS.register_module(name='StubbornHead', module=StubbornHead, force=True)
    cfg = local_detector()
    cfg.model.bbox_head.type = 'StubbornHead'
    with pytest.raises(
        LocalLearningError,
        match=r'2×3×96×96 cannot be simulated \(.*numpy.*'
        'give num_modules a number',
    ):
        fit_modules(cfg, '1GB', SHAPE)


@pytest.mark.slow
def test_the_fewest_that_fit():
    cfg = local_detector(1, light=True)
    predictions = {}
    for num_modules in (1, 2, 3, 4, 6, 'blocks'):
        local = copy.deepcopy(cfg)
        local.model.backbone.num_modules = num_modules
        predictions[num_modules] = predict_memory(local, SHAPE)
    totals = {number: predicted.total for number, predicted in predictions.items()}
    for wanted in (2, 'blocks'):
        lines = []
        with mock.patch(
            'fba_mm.analysis.memory_fit.predict_memory',
            lambda cfg, shape: predictions[cfg.model.backbone.num_modules],
        ):
            found = fit_modules(cfg, totals[wanted], SHAPE, lines.append)
        fewest = next(number for number in totals if totals[number] <= totals[wanted])
        assert found.model.backbone.num_modules == fewest
        lines = [line for line in lines if line.startswith('num_modules=')]
        tried = [line.split(':')[0].split('=')[1] for line in lines]
        assert tried == [repr(number) for number in list(totals)[: list(totals).index(fewest) + 1]]
        assert lines[-1].endswith('fits') and 'does not fit' not in lines[-1]
        assert all('does not fit' in line for line in lines[:-1])
    assert len({totals[1], totals[2], totals['blocks']}) == 3
    assert cfg.model.backbone.num_modules == 1
    found.model.backbone.num_modules = 1
    assert found.to_dict() == cfg.to_dict()


def test_parameters_alone_are_too_many():
    """More modules have more: none of them is tried."""
    lines = []
    with pytest.raises(LocalLearningError, match=r'with num_modules=1 '):
        fit_modules(local_detector(), '1MB', SHAPE, lines.append)
    assert len(lines) == 2


def test_garbage_is_looked_for_in_what_is_new(monkeypatch):
    monkeypatch.setattr(memory_fit, '_only_young', False)
    calls = []
    for name in ('freeze', 'unfreeze'):
        monkeypatch.setattr(memory_fit.gc, name, lambda name=name: calls.append(name))
    with pytest.raises(ZeroDivisionError), young_garbage(), young_garbage():
        assert calls == ['freeze']
        raise ZeroDivisionError
    assert calls == ['freeze', 'unfreeze']
    with young_garbage():
        assert calls == ['freeze', 'unfreeze', 'freeze']


@pytest.mark.slow
def test_none_fits():
    cfg = localize(classifier(), 1)
    one = predict_memory(cfg, SHAPE)
    budget = one.resident + one.peak // 10
    with pytest.raises(
        LocalLearningError,
        match=rf'memory_budget={budget} \(.*MiB\) is less than any number '
        r'of modules takes on batches of 2×3×96×96: the least is \d.* MiB, with '
        r'num_modules=.*: take smaller images',
    ):
        fit_modules(cfg, budget, SHAPE, lambda line: None)


@pytest.mark.slow
def test_fitting_a_generator():
    cfg = localize(super_resolution(num_blocks=16), 'auto', memory_budget='3MB')
    totals = {}
    for num_modules in (1, 2, 3):
        cfg.model.generator.pop('memory_budget', None)
        cfg.model.generator.num_modules = num_modules
        totals[num_modules] = predict_memory(cfg, SHAPE).total
    assert totals[1] > totals[2] > totals[3]
    cfg.model.generator.update(num_modules='auto', memory_budget=totals[2])
    found = resolve_num_modules(cfg, SHAPE, lambda line: None)
    assert found.model.generator.num_modules == 2 and 'memory_budget' not in found.model.generator
    assert cfg.model.generator.num_modules == 'auto'


def test_fitting_a_stock_config():
    with pytest.raises(LocalLearningError, match='model.generator is no LocalBackbone'):
        fit_modules(super_resolution(), '1GB', SHAPE)
    with pytest.raises(LocalLearningError, match='make the config local'):
        fit_modules(detector(), '1GB', SHAPE)


def test_in_a_config():
    cfg = local_detector(light=True)
    assert resolve_num_modules(cfg) is cfg
    stock = detector()
    assert resolve_num_modules(stock) is stock
    cfg.model.backbone.update(num_modules='auto', memory_budget='1GB')
    lines = []
    found = resolve_num_modules(cfg, SHAPE, lines.append)
    assert found.model.backbone.num_modules == 1 and 'memory_budget' not in found.model.backbone
    assert cfg.model.backbone.num_modules == 'auto' and len(lines) == 3
    assert lines[-1] == 'K = 1 is plain back-propagation: you need no local learning here.'
    del cfg.model.backbone.memory_budget
    with pytest.raises(LocalLearningError, match="needs a budget.*memory_budget='8GB'"):
        resolve_num_modules(cfg, SHAPE)


def test_localize():
    cfg = localize(detector(), 'auto', auxiliary=own_head(), memory_budget='4GB')
    assert cfg.model.backbone.memory_budget == '4GB'
    assert resolve_num_modules(cfg, SHAPE).model.backbone.num_modules == 1
    with pytest.raises(LocalLearningError, match='needs a budget'):
        localize(detector(), 'auto')
    with pytest.raises(LocalLearningError, match="num_modules=4: give num_modules='auto'"):
        localize(detector(), 4, memory_budget='8GB')


@pytest.mark.parametrize(
    'backbone, words',
    [
        (dict(num_modules='auto', memory_budget='8GB'), 'before the model is built'),
        (dict(num_modules='auto'), 'needs a budget'),
        (dict(memory_budget='8GB'), 'leave the budget out'),
    ],
)
def test_a_model_does_not_choose_itself(backbone, words):
    cfg = local_detector().model
    cfg.backbone.update(backbone)
    with pytest.raises(LocalLearningError, match=words):
        MODELS.build(cfg)


@pytest.mark.parametrize('budget, nbytes', [
    ('8GB', 8 * 10**9), ('8gb', 8 * 10**9), (' 1.5 GiB ', 3 * 2**29), ('.5TB', 5 * 10**11),
    ('512MB', 512 * 10**6), ('2000000', 2 * 10**6), (10**9, 10**9), (1e9, 10**9),
    ('4096 KiB', 2**22),
])  # yapf: disable
def test_budgets(budget, nbytes):
    assert parse_memory(budget) == nbytes
    assert check_budget('auto', budget)


@pytest.mark.parametrize(
    'budget',
    ['8', 8, '8 G', '-8GB', 'GB', '', '8GB 2', 'inf', float('inf'), float('nan'), True, [8], '1e9'],
)
def test_budgets_that_are_none(budget):
    with pytest.raises(LocalLearningError, match="give it with a unit, as '8GB'"):
        parse_memory(budget)


@pytest.mark.slow
def test_the_default_of_a_shipped_config():
    """What docs/memory.md says of RetinaNet-R50 at full size; as shipped it takes 3,969 MiB."""
    cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
    found = predict_memory(cfg, (2, 3, 800, 1333))
    assert found.total / 2**20 == pytest.approx(1187, rel=0.01) and not found.guessed_loss
