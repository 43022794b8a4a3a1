"""Accuracies of the modules' own heads, against counting by hand."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from fba_mm import LocalLearningError, localize
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.engine import LocalAccuracyHook
from fba_mm.preflight.building import build_model

from ..test_analysis.small_configs import classifier


def model_of(num_modules=3, **auxiliary):
    torch.manual_seed(0)
    model = build_model(localize(classifier('BN'), num_modules, auxiliary=auxiliary or None))
    model.init_weights()
    return model.eval()


def validated(model, batches, **metrics):
    hook, runner = LocalAccuracyHook(), SimpleNamespace(model=model, message_hub=mock.Mock())
    hook.before_val_epoch(runner)
    for i, data in enumerate(batches):
        hook.after_val_iter(runner, i, data)
    hook.after_val_epoch(runner, metrics)
    return metrics


def test_accuracies_are_those_of_the_modules():
    """Labels are what module 1 says: it is always right, and module 2 where the two agree."""
    model = model_of(type='Greedy', num_classes=5)
    backbone, batches, agree = model.backbone, [], 0
    for count in (6, 3):
        data = synthetic_batch(model, (count, 3, 64, 64))
        x, said = model.data_preprocessor(dict(data), False)['inputs'], []
        for module, auxiliary in zip(backbone.module_segments, backbone.auxiliary):
            for i in module:
                x = backbone.segments[i].run(backbone.backbone, x)
            said.append(auxiliary.fc(x.mean((2, 3))).argmax(1))
        for sample, label in zip(data['data_samples'], said[0]):
            sample.set_gt_label(int(label))
        agree += int((said[0] == said[1]).sum())
        batches.append(data)
    assert validated(model, batches, accuracy=1.0) == {
        'accuracy': 1.0,
        'local_1/accuracy': 100.0,
        'local_2/accuracy': pytest.approx(100 * agree / 9),
    }


@pytest.mark.parametrize(
    'auxiliary',
    [dict(), dict(type='MAN', num_classes=5, host=dict(type='PredSim'))],
    ids=['SLM', 'MAN'],
)
def test_other_auxiliary_networks(auxiliary):
    model = model_of(**auxiliary)
    found = validated(model, [synthetic_batch(model, (4, 3, 64, 64))])
    assert list(found) == ['local_1/accuracy', 'local_2/accuracy']
    assert all(value in (0, 25, 50, 75, 100) for value in found.values())


def test_nothing_is_changed():
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validated(model, [synthetic_batch(model, (4, 3, 64, 64))])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_back_propagation_has_no_modules():
    model = model_of(1)
    assert validated(model, [synthetic_batch(model, (4, 3, 64, 64))], accuracy=2.0) == {
        'accuracy': 2.0
    }


def test_what_makes_no_class_scores():
    model = model_of(type='InfoPro', num_classes=5, contrastive=True)
    with pytest.raises(LocalLearningError, match='no class scores: leave LocalAccuracyHook out'):
        validated(model, [synthetic_batch(model, (4, 3, 64, 64))])
