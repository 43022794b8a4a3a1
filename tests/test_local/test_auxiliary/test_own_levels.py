"""A detection head on the levels of a module's own stride, behind MAN++."""

import pytest
import torch

from fba_mm import LocalLearningError

from ...conftest import batch, build, retinanet
from ...local_training import Trainer

HOST = dict(type='OwnLevels', num_classes=3, channels=8)


def model_of(**changes):
    return build(
        retinanet(num_modules='stages', auxiliary=dict(type='MAN++', host=dict(HOST, **changes)))
    )


def test_modules_predict_p3_p4_and_p5_to_p7():
    heads = [auxiliary.host.head for auxiliary in model_of().backbone.auxiliary]
    strides = [[s[0] for s in head.bbox_head.prior_generator.strides] for head in heads]
    assert strides == [[8], [16], [32, 64, 128]]
    # Anchors of 4 strides, in three sizes and ratios, centred on their position.
    anchors = heads[1].bbox_head.prior_generator.grid_priors([(2, 2)], device='cpu')[0]
    assert anchors.shape == (36, 4)
    centers = (anchors[::9, :2] + anchors[::9, 2:]) / 2
    torch.testing.assert_close(
        centers, torch.tensor([[8.0, 8.0], [24.0, 8.0], [8.0, 24.0], [24.0, 24.0]])
    )
    sides = ((anchors[:9, 2:] - anchors[:9, :2]).prod(1) ** 0.5).sort().values
    torch.testing.assert_close(sides, (64 * 2 ** (torch.arange(9) // 3 / 3)))
    assert [len(head.bbox_head.cls_convs) for head in heads] == [2, 2, 2]


def test_levels_come_from_the_map_and_each_other():
    neck = model_of().backbone.auxiliary[2].host.head.neck
    x = torch.randn(2, 64, 4, 4)
    first, second, third = neck([x])
    torch.testing.assert_close(first, neck.project[0](x).clamp(min=0))
    torch.testing.assert_close(second, neck.coarser[0][1](first))
    torch.testing.assert_close(third, neck.coarser[1][1](second.clamp(min=0)))
    assert [f.shape[2:] for f in (first, second, third)] == [(4, 4), (2, 2), (1, 1)]


def test_a_detector_trains():
    model = model_of()
    gradients = Trainer(model).gradients(batch())
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(num_classes=None), "num_classes=None: give that of the model's head"),
        (dict(num_classes=4), 'predicts 4 classes, the model 3'),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(LocalLearningError, match=message):
        Trainer(model_of(**changes))
