"""Peak memory of a training step, against back-propagation's."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from fba_mm import localize
from fba_mm.analysis.memory import measure_step
from fba_mm.analysis.training_profile import profile_training
from fba_mm.planning.baselines import baselines

from ..conftest import NUM_CLASSES, batch, build, own_head, retinanet
from ..local_training import Trainer

pytestmark = pytest.mark.slow

# Measured, in MB: RetinaNet with 16 base channels, 2 images of 256x256, float32, above parameters
# and buffers, with gradients.
#
#   head                own                     shared
#   K            1      4    stages  blocks     4    stages  blocks
#   R50        61.1   21.4    32.8    15.0    29.5    41.5    28.9
#   R101       87.9                   15.0                    28.9
# Beside activation checkpointing, with a wider head of two convolutions, the sliced focal loss and
# light heads, R50: BP 60.4 MiB, checkpointing 29.9, K = 4 24.3, K = 'blocks' 14.4.
MB = 1e6


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.001)


@pytest.fixture(scope='module')
def peak():
    """``peak(depth, num_modules, head)`` in MB, each measured once."""
    known = {}

    def measure(depth, num_modules, head='own'):
        if num_modules is None:
            head = None
        key = depth, num_modules, head
        if key not in known:
            auxiliary = own_head() if head == 'own' else dict(type='SLM')
            model = build(
                retinanet(
                    depth, num_modules, auxiliary=auxiliary, base_channels=16, stem_channels=16
                )
            )
            data = batch(size=256, images=2)
            if num_modules is None:
                optim_wrapper = OptimWrapper(sgd(model.parameters()))

                def step():
                    model.train_step(data, optim_wrapper)
            else:
                trainer = Trainer(model, optimizer=sgd, apply='eager')

                def step():
                    trainer.step(data)

            known[key] = measure_step(step, watch=[model]).peak_bytes / MB
        return known[key]

    return measure


@pytest.mark.parametrize('head', ['own', 'shared'])
def test_below_back_propagation(peak, head):
    bp, four, finest = (peak(50, k, head) for k in (None, 4, 'blocks'))
    # Measured ratios: 0.35 and 0.48 for K = 4, 0.25 and 0.47 for the finest cut.
    assert four < (0.5 if head == 'own' else 0.6) * bp
    assert finest < (0.35 if head == 'own' else 0.6) * bp
    assert finest <= four


def test_one_module_takes_what_back_propagation_takes(peak):
    assert peak(50, 1) == pytest.approx(peak(50, None), rel=0.01)


def test_cuts_balanced_by_memory_beat_cuts_at_the_stages(peak):
    # Measured ratio: 0.65.
    assert peak(50, 4, 'own') < 0.8 * peak(50, 'stages', 'own')


def test_depth_does_not_count(peak):
    growth = {k: peak(101, k, 'own') / peak(50, k, 'own') for k in (None, 'blocks')}
    # Measured: 1.00, back-propagation 1.44.
    assert growth['blocks'] < 1.05
    assert growth[None] > 1.3


def test_beside_activation_checkpointing():
    """The ratios that full-size networks show on full-size images are larger yet."""
    model = retinanet(50, None, base_channels=16, stem_channels=16)
    model['neck']['out_channels'] = 64
    model['bbox_head'].update(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        loss_cls=dict(type='SlicedFocalLoss', use_sigmoid=True),
    )
    cfg = Config(
        dict(
            model=model,
            default_scope='mmdet',
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
            ),
        )
    )
    auxiliary = dict(
        type='SLM',
        channels=16,
        head=dict(type='LightRetinaNet', num_classes=NUM_CLASSES, channels=16),
    )
    variants = baselines(localize(cfg, 4, auxiliary=auxiliary), 2, ['bp', 'checkpointing'])[:3]
    variants += baselines(localize(cfg, 'blocks', auxiliary=auxiliary), 2, [])
    profiles = profile_training(variants, (2, 3, 256, 256), rounds=0, report=lambda line: None)
    four, bp, checkpointing, blocks = (profile.memory.peak_bytes for profile in profiles)
    assert four < 0.45 * bp and four < 0.9 * checkpointing
    assert blocks < 0.27 * bp and blocks < 0.55 * checkpointing
