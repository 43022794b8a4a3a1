"""Memory of steps and modules in the log, against measuring the same step by itself."""

from types import SimpleNamespace

import pytest
import torch

from fba_mm import LocalLearningError
from fba_mm.analysis.local_memory_hook import LocalMemoryHook
from fba_mm.analysis.memory import measure_step
from fba_mm.analysis.step_phases import marked_phases, module_peaks
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep

from .small_configs import detector, local_detector


class Hub(dict):
    """What was logged, each value with its iteration."""

    iteration = 0

    def update_scalar(self, name, value):
        self.setdefault(name, []).append((self.iteration, value))


def logged(cfg, iterations, interval, start=0):
    """Train with the hook, as the loop of MMEngine does, and return what it has logged."""
    torch.manual_seed(0)
    step = TrainingStep(cfg)
    data = synthetic_batch(step.model, (2, 3, 64, 64))
    hook, hub = LocalMemoryHook(interval), Hub()
    runner = SimpleNamespace(
        model=step.model, optim_wrapper=step.optim_wrapper, message_hub=hub, iter=start
    )
    hook.before_train(runner)
    for _ in range(iterations):
        hub.iteration = runner.iter
        hook.before_train_iter(runner, 0, data)
        step(data)
        runner.iter += 1
    return step, data, hub


def test_values_are_those_of_a_measured_step():
    step, data, hub = logged(local_detector(3), 2, 5)
    with marked_phases(step.model, step.optim_wrapper):
        expected = measure_step(lambda: step(data))
    found = {name: values[0][1] * 2**20 for name, values in hub.items()}
    peaks = module_peaks(expected.phases)
    assert list(found) == ['train/step_memory', *(f'train/local_{k}.memory' for k in (1, 2, 3))]
    assert [*found.values()] == pytest.approx([expected.peak_bytes, *peaks], rel=0.01)
    assert len(set(peaks)) == 3


@pytest.mark.parametrize('start', [0, 40])
def test_one_step_in_an_interval(start):
    _, _, hub = logged(local_detector(3), 8, 3, start)
    assert [i for i, _ in hub['train/local_1.memory']] == [start + 1, start + 4, start + 7]


def test_back_propagation_has_no_modules():
    _, _, hub = logged(detector(), 2, 5)
    assert list(hub) == ['train/step_memory'] and hub['train/step_memory'][0][1] > 0


def test_training_goes_on_as_it_would():
    weights = [logged(local_detector(3), 4, interval)[0].model for interval in (1, 100)]
    for one, other in zip(*(model.state_dict().values() for model in weights)):
        assert torch.equal(one, other)
    assert 'train_step' not in vars(weights[0])


def test_refused():
    with pytest.raises(LocalLearningError, match='interval'):
        LocalMemoryHook(0)
