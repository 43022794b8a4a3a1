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
    ],
)
def test_as_they_are(task, kind, stock):
    assert config_fuzz.run(stock[task, kind]) == 'trains'


def test_mutations(stock):
    """A few of each task, of stock and of local training."""
    results = {
        change: config_fuzz.run(cfg) for _, cfg, change in config_fuzz.mutations(stock, 16, 0)
    }
    assert {result.partition(':')[0] for result in results.values()} <= {'trains', 'refused'}, (
        results
    )
