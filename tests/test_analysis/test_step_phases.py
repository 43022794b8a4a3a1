import pytest

from fba_mm.analysis import TrainingStep, measure_step
from fba_mm.analysis.step_phases import marked_phases, module_peaks
from fba_mm.analysis.synthetic_batch import synthetic_batch

from .small_configs import detector, local_detector

pytestmark = pytest.mark.slow


def phases_of(cfg):
    step = TrainingStep(cfg)
    data = synthetic_batch(step.model, (2, 3, 64, 64))
    step(data)
    with marked_phases(step.model, step.optim_wrapper):
        found = measure_step(lambda: step(data))
    return step, data, found


LOCAL = [
    'forward',
    'module 1',
    'module 1 backward',
    'module 2',
    'module 2 backward',
    'module 3',
    'module 3 backward',
    'update',
]


@pytest.mark.parametrize(
    'cfg, names',
    [
        (detector, ['forward', 'backward', 'update']),
        (local_detector, LOCAL),
        (lambda: local_detector(scope='all'), LOCAL),
        (lambda: local_detector(apply='eager'), LOCAL),
        (lambda: local_detector(num_modules=1), ['forward', 'backward', 'update']),
    ],
    ids=['stock', 'local', 'looking ahead', 'eager', 'K = 1'],
)
def test_names_in_order(cfg, names):
    _, _, found = phases_of(cfg())
    assert [name for name, _ in found.phases] == [name for name, _ in found.marks] == names
    assert max(peak for _, peak in found.phases) == found.peak_bytes


def test_the_peak_of_each_phase_is_that_of_the_timeline():
    _, _, found = phases_of(local_detector())
    starts = [moment for _, moment in found.marks] + [found.seconds]
    for (_, peak), start, end in zip(found.phases, starts, starts[1:]):
        before = [nbytes for moment, nbytes in found.timeline if moment <= start][-1]
        within = [nbytes for moment, nbytes in found.timeline if start < moment <= end]
        assert peak == max(before, *within)


def test_all_is_left_as_it_was():
    step, data, _ = phases_of(local_detector())
    for name in ('backward', 'step', 'update_local'):
        assert name not in vars(step.optim_wrapper)
    assert not any(m._forward_pre_hooks for m in step.model.modules() if m is not step.model)
    assert measure_step(lambda: step(data)).phases == []


def test_a_module_is_its_forward_and_its_backward():
    assert module_peaks(
        [
            ('forward', 9),
            ('module 1', 4),
            ('module 1 backward', 6),
            ('module 2', 7),
            ('module 2 backward', 5),
            ('update', 8),
        ]
    ) == [6, 7]
    assert module_peaks([('forward', 9), ('backward', 4)]) == []
