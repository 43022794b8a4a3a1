"""mmseg's segmentors in local modules: dilated stages, several heads, and what they predict."""

import copy
from unittest import mock

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from torch import distributed as dist
from torch import nn

from fba_mm import localize
from fba_mm.analysis.training_profile import profile_training
from fba_mm.checkpoint import export_checkpoint
from fba_mm.local.partition import unroll
from fba_mm.localize import stock_form
from fba_mm.planning.baselines import baselines
from fba_mm.preflight.building import build_model

from ..conftest import build
from ..local_training import Trainer
from ..segmentation import (
    LIGHT,
    NUM_CLASSES,
    dilated_resnet,
    labelled_batch,
    segmentor,
    swin,
    training,
)
from .test_partition.family_checks import (
    built,
    check_checkpoint,
    check_forward,
    check_isolation,
    check_parameters,
)


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.mark.parametrize('backbone', [dilated_resnet(50), swin()], ids=lambda cfg: cfg['type'])
def test_segments_one_by_one_are_the_forward(backbone):
    check_forward(backbone, (3, 64, 96))
    check_parameters(backbone)


@pytest.mark.parametrize(
    'kind, backbone',
    [('FCNHead', None), ('PSPHead', None), ('ASPPHead', None), ('UPerHead', swin())],
    ids=['fcn', 'pspnet', 'deeplabv3', 'upernet'],
)
@pytest.mark.parametrize('auxiliary', [None, LIGHT], ids=['shared', 'light'])
def test_isolation(kind, backbone, auxiliary):
    check_isolation(segmentor(3, kind, backbone, auxiliary), labelled_batch())


@pytest.mark.parametrize('kind, backbone', [('FCNHead', None), ('UPerHead', swin())])
def test_a_light_head_reads_what_the_module_makes(kind, backbone):
    """None of the bank's maps, so that the module has to answer; and no layer stays untrained."""
    model = build(segmentor('stages', kind, backbone, LIGHT))
    read = [aux.head.decode_head.in_index for aux in model.backbone.auxiliary]
    assert read == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    # It moves layers with the smallest of gradients, too.
    trainer = Trainer(model, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    trainer.step(labelled_batch())
    assert [n for n, p in model.backbone.named_parameters() if torch.equal(p, before[n])] == []


def test_isolation_with_heads_like_the_models():
    auxiliary = localize(training(), 3, auxiliary='own').model.backbone.auxiliary
    assert set(auxiliary.head) >= {'decode_head', 'auxiliary_head'}
    check_isolation(segmentor(3, auxiliary=auxiliary.to_dict()), labelled_batch())


def test_one_module_trains_exactly_as_the_unwrapped_model():
    plain, wrapped = build(segmentor(None)), build(segmentor(1))

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    optim_wrapper, trainer = OptimWrapper(sgd(plain.parameters())), Trainer(wrapped, optimizer=sgd)
    for seed in range(2):
        log = plain.train_step(labelled_batch(seed=seed), optim_wrapper)
        assert trainer.step(labelled_batch(seed=seed)) == {
            name: float(value.detach()) for name, value in log.items()
        }
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), wrapped.buffers()))


@pytest.mark.parametrize('size', [(64, 96), (57, 41)])
@pytest.mark.parametrize(
    'strides, dilations', [((1, 2, 1, 1), (1, 1, 2, 4)), ((1, 2, 2, 1), (1, 1, 1, 2))]
)
def test_dilated_stages_are_completed_at_their_resolution(size, strides, dilations):
    """What each module's heads are given has the shapes of the whole backbone's maps."""
    model = build(
        segmentor('blocks', backbone=dilated_resnet(strides=strides, dilations=dilations))
    )
    with torch.no_grad():
        expected = [feature.shape for feature in model.backbone.backbone(torch.rand(2, 3, *size))]
    model.data_preprocessor.size_divisor = 1
    seen = []
    original = type(model).loss

    def loss(self, inputs, data_samples):
        if self.backbone._answer is not None:
            seen.append([feature.shape for feature in self.backbone._answer])
        return original(self, inputs, data_samples)

    with mock.patch.object(type(model), 'loss', loss):
        Trainer(model, scope='all').step(labelled_batch(size))
    assert seen == [expected] * (model.backbone.num_modules - 1)


@pytest.mark.parametrize('depth, dilated', [(18, 2), (50, 1)])
def test_reduced_blocks_see_as_far_as_the_stages_that_they_stand_in_for(depth, dilated):
    model = build(segmentor('blocks', backbone=dilated_resnet(depth)))
    for auxiliary in model.backbone.auxiliary:
        later = [s for s in auxiliary.cut_point.stages if s.stage > auxiliary.cut_point.stage]
        assert len(later) == len(auxiliary.blocks)
        for stage, block in zip(later, auxiliary.blocks):
            found = [
                m.dilation[0]
                for m in block.modules()
                if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
            ]
            assert found == [(1, 1, 2, 4)[stage.stage]] * dilated
    point = model.backbone.auxiliary[0].cut_point
    finished = build(
        segmentor(
            'blocks', backbone=dilated_resnet(depth), auxiliary=dict(type='SLM', finish_stage=True)
        )
    )
    assert (
        len(
            {
                m.dilation
                for a in finished.backbone.auxiliary
                if a.finish
                for m in a.finish.modules()
                if isinstance(m, nn.Conv2d)
            }
        )
        == 3
    )
    # Other families' blocks are not asked.
    assert [s.dilation for s in point.stages] == [1, 1, 2, 4]
    assert {s.dilation for s in unroll(built(swin())).segments} == {1}


def test_stock_checkpoints_load_and_predict_the_same():
    check_checkpoint(segmentor(4), segmentor(None), labelled_batch())


@pytest.mark.parametrize('auxiliary', ['shared', 'own', 'light'])
def test_exported_checkpoints_are_the_stock_models(auxiliary):
    cfg = localize(training(), 4, auxiliary=auxiliary)
    model = build_model(cfg)
    model.init_weights()
    Trainer(model.train()).step(labelled_batch())
    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))
    stock = build_model(stock_form(cfg))
    stock.load_state_dict(exported['state_dict'], strict=True)
    data, found = labelled_batch(), []
    with torch.no_grad():
        for one in (model, stock):
            found.append(one.eval().test_step(copy.deepcopy(data)))
    for ours, theirs in zip(*found):
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert ours.seg_logits.data.shape == (NUM_CLASSES, 64, 64)


def test_pretrained_weights_of_the_model_are_handed_on():
    """MMSegmentation's models write ``pretrained`` into what they have for a backbone."""
    model = build_model(localize(training(pretrained='open-mmlab://resnet18_v1c'), 4))
    plain = build_model(training(pretrained='open-mmlab://resnet18_v1c'))
    assert model.backbone.backbone.init_cfg == plain.backbone.init_cfg
    assert 'resnet18_v1c' in str(plain.backbone.init_cfg)


def test_synchronized_norms_are_cut_in_a_distributed_job():
    """Where there is no batch to synchronize: while modules are weighed."""
    norm = dict(type='SyncBN', requires_grad=True)
    expected = build(segmentor(4)).backbone.module_segments
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build(segmentor(4, backbone=dilated_resnet(norm_cfg=norm)))
    finally:
        dist.destroy_process_group()
    assert model.backbone.module_segments == expected
    assert isinstance(model.backbone.backbone.layer1[0].bn1, nn.SyncBatchNorm)


@pytest.mark.slow
def test_peak_memory():
    cfg = training(backbone=dilated_resnet(50))
    variants = baselines(localize(cfg, 4, auxiliary=LIGHT), 2, ['bp'])
    variants += baselines(localize(cfg, 4, auxiliary='shared'), 2, [])
    light, bp, shared = profile_training(
        variants, (2, 3, 128, 128), rounds=0, report=lambda line: None
    )
    bp, light, shared = (one.memory.peak_bytes for one in (bp, light, shared))
    assert light < 0.5 * bp and light < shared < 0.8 * bp, (light / bp, shared / bp)
