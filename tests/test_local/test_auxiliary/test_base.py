"""What every auxiliary network has in common."""

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local import Auxiliary
from fba_mm.local.partition import CutPoint

from ...conftest import batch, build, retinanet
from ...local_training import Trainer

POINT = CutPoint(
    module=0, num_modules=2, stage=0, channels=8, stride=4, stages=(), reduced_block=None
)


@MODELS.register_module()
class MeanOfOutput(Auxiliary):
    """The smallest method that can be written."""

    def loss(self, x, levels, step):
        return self.weighted(
            dict(loss_mean=x.mean(), loss_parts=[x.abs().mean(), x.max()], size=x.mean())
        )


def test_a_new_method_is_one_class():
    model = build(retinanet(num_modules=4, auxiliary=dict(type='MeanOfOutput', loss_weight=2.0)))
    assert [type(auxiliary) for auxiliary in model.backbone.auxiliary] == [MeanOfOutput] * 3
    trainer = Trainer(model)
    assert trainer.gradients(batch()).keys() == {n for n, _ in model.named_parameters()}
    for i in (1, 2, 3):
        total = sum(float(trainer.log[f'local_{i}.{name}']) for name in ('loss_mean', 'loss_parts'))
        assert float(trainer.log[f'local_{i}.loss']) == pytest.approx(total)


def test_weight_concerns_losses_alone():
    losses = dict(
        loss_a=torch.tensor(2.0),
        loss_b=[torch.tensor(3.0), torch.tensor(4.0)],
        accuracy=torch.tensor(5.0),
    )
    weighted = MeanOfOutput(POINT, loss_weight=0.5).weighted(losses)
    assert weighted == dict(loss_a=1.0, loss_b=[1.5, 2.0], accuracy=5.0)
    assert MeanOfOutput(POINT).weighted(losses) == losses


@pytest.mark.parametrize('loss_weight', [0, -1.0, float('nan')])
def test_a_module_without_a_loss(loss_weight):
    with pytest.raises(LocalLearningError, match='auxiliary.loss_weight=.*positive.*num_modules'):
        MeanOfOutput(POINT, loss_weight=loss_weight)


def test_every_cut_knows_its_place():
    backbone = retinanet(num_modules=None)['backbone']
    wrapped = LocalBackbone(backbone, 'stages', auxiliary=dict(type='MeanOfOutput'))
    points = [auxiliary.cut_point for auxiliary in wrapped.auxiliary]
    assert [(p.module, p.num_modules, p.stage, p.channels, p.stride) for p in points] == [
        (0, 4, 0, 8, 4),
        (1, 4, 1, 16, 8),
        (2, 4, 2, 32, 16),
    ]
