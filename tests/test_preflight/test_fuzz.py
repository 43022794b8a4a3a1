"""Mutated configs train or are refused in one line; ``python -m tests.config_fuzz`` has more."""

import pytest

from tests import config_fuzz


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    return config_fuzz.base_configs(tmp_path_factory.mktemp('fuzz'))


@pytest.mark.slow
@pytest.mark.parametrize(
    'task, kind',
    [
        ('detection', 'stock'),
        ('segmentation', 'local'),
        ('super_resolution', 'stock'),
        ('classification', 'local'),
        ('depth_estimation', 'local'),
    ],
)
def test_as_they_are(task, kind, stock):
    assert config_fuzz.run(stock[task, kind], 'iteration') == 'trains'


@pytest.mark.parametrize(
    'until, count, seed',
    [('iteration', 10, 0), pytest.param('build', 60, 1, marks=pytest.mark.slow)],
)
def test_mutations(until, count, seed, stock):
    """Of each task, of stock and of local training; a few are trained for an iteration."""
    results = {
        f'{kind} {change}': config_fuzz.run(cfg, until)
        for kind, cfg, change in config_fuzz.mutations(stock, count, seed)
    }
    assert {result.partition(':')[0] for result in results.values()} <= {'trains', 'refused'}, (
        results
    )
