"""A batch in parts trains as the whole does, or is refused."""

from functools import partial

import pytest
import torch
from mmengine.config import Config

from fba_mm import LocalLearningError, localize
from fba_mm.analysis import TrainingStep, measure_step
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.localize import accumulated, checkpointed, sliced
from fba_mm.preflight.building import build_model

from .. import segmentation
from ..test_analysis.small_configs import classifier, detector, super_resolution


def segmentor(norm: str = 'GN') -> Config:
    norm_cfg = dict(type='GN', num_groups=4) if norm == 'GN' else dict(type=norm)
    model = segmentation.segmentor(None, backbone=segmentation.dilated_resnet(norm_cfg=norm_cfg))
    for head in (model['decode_head'], model['auxiliary_head']):
        head['norm_cfg'] = norm_cfg
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
    return Config(dict(default_scope='mmseg', model=model, optim_wrapper=optim_wrapper))


def trained(cfg, shape, steps=2):
    """The losses of the last of some steps, and the parameters after them."""
    torch.manual_seed(0)
    step = TrainingStep(cfg)
    torch.manual_seed(1)
    for parameter in step.model.parameters():  # Zeros, as of biases, would hide what is missing.
        parameter.data += 0.01 * torch.randn_like(parameter)
    data = synthetic_batch(step.model, shape)
    for _ in range(steps):
        losses = step(data)
    return losses, dict(step.model.named_parameters())


@pytest.mark.parametrize(
    'make, shape, change',
    [
        (classifier, (3, 3, 32, 32), lambda cfg: cfg),
        (super_resolution, (3, 3, 12, 12), lambda cfg: cfg),
        (segmentor, (3, 3, 32, 32), sliced),
        (partial(detector, norm_eval=True), (3, 3, 64, 64), lambda cfg: cfg),
        (classifier, (3, 3, 32, 32), lambda cfg: checkpointed(cfg, 2)),
        (
            partial(detector, norm_eval=True),
            (3, 3, 64, 64),
            lambda cfg: checkpointed(cfg, 2, head=True),
        ),
    ],
    ids=[
        'classifier',
        'super-resolution',
        'segmentor',
        'detector',
        'recomputed',
        'neck and head recomputed',
    ],
)
def test_parts_train_as_the_whole(make, shape, change):
    """Also where the last part is a smaller one."""
    expected_losses, expected = trained(change(make()), shape)
    losses, found = trained(accumulated(change(make()), 2), shape)
    names = [name for name in losses if 'loss' in name]
    assert names == [name for name in expected_losses if 'loss' in name]
    for name in names:
        torch.testing.assert_close(losses[name], expected_losses[name], rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-5, atol=1e-6)


def test_activations_of_a_part():
    peaks = []
    for cfg in (classifier(), accumulated(classifier(), 1)):
        step = TrainingStep(cfg)
        data = synthetic_batch(step.model, (8, 3, 128, 128))
        step(data)
        peaks.append(measure_step(lambda step=step, data=data: step(data)).peak_bytes)
    # Measured: 0.37. The batch itself and gradients of parameters stay.
    assert peaks[1] < 0.4 * peaks[0]


@pytest.mark.parametrize(
    'cfg, words',
    [
        (classifier('BN'), r'batch normalization is trained \(backbone.bn1\)'),
        (detector(), 'batch normalization is trained'),
        (segmentor('BN'), 'batch normalization is trained'),
    ],
    ids=['classifier', 'detector', 'segmentor'],
)
def test_images_that_depend_on_each_other(cfg, words):
    step = TrainingStep(accumulated(cfg, 1))
    with pytest.raises(LocalLearningError, match=words):
        step(synthetic_batch(step.model, (2, 3, 64, 64)))


def test_losses_whose_divisor_is_not_known():
    cfg = detector(norm_eval=True)
    cfg.model.update(type='ATSS')
    cfg.model.bbox_head = dict(
        type='ATSSHead', num_classes=4, in_channels=16, feat_channels=32, stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
    )  # fmt: skip
    cfg.model.train_cfg = dict(assigner=dict(type='ATSSAssigner', topk=9))
    step = TrainingStep(accumulated(cfg, 1))
    with pytest.raises(LocalLearningError, match='ATSS is not known to be a mean over images'):
        step(synthetic_batch(step.model, (2, 3, 64, 64)))


def test_a_loss_that_leaves_out_pixels():
    """Its divisor is the number of labelled pixels of the whole batch."""
    cfg = segmentor()
    cfg.model.decode_head.loss_decode.avg_non_ignore = True
    step = TrainingStep(accumulated(cfg, 1))
    with pytest.raises(LocalLearningError, match='EncoderDecoder is not known'):
        step(synthetic_batch(step.model, (2, 3, 64, 64)))


def test_bad_input():
    with pytest.raises(LocalLearningError, match='SplitBatchHook.images=0: give a number'):
        TrainingStep(accumulated(classifier(), 0))
    cfg = accumulated(classifier(), 1)
    cfg.optim_wrapper.type = 'OptimWrapper'
    with pytest.raises(LocalLearningError, match="set optim_wrapper.type='LocalOptimWrapper'"):
        TrainingStep(cfg)
    with pytest.raises(LocalLearningError, match='set head_batch_size'):
        TrainingStep(accumulated(localize(classifier(), 2), 1))
    assert build_model(accumulated(classifier(), 1)) is not None
