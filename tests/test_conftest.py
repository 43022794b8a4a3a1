"""A failure is taken for a package that isn't installed only where that is what it says."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from . import conftest
from .conftest import wanted_package

PINS = dict(
    re.findall(
        r'^([\w-]+)==(\S+)$',
        Path(__file__).parents[1].joinpath('requirements.txt').read_text(),
        re.M,
    )
)
FAILURES = [
    (ModuleNotFoundError("No module named 'mmseg'"), 'mmseg'),
    (ValueError('mmseg is not installed. Please install it'), 'mmseg'),
    (AssertionError("'error: LightFCN needs mmseg, which is not installed'"), 'mmseg'),
    (KeyError("'FCNHead is not in the mmengine::model registry.'"), 'FCNHead of mmseg'),
    (AssertionError("assert 'mmseg' == 'mmdet'"), None),
    (AssertionError('E   NameError: x\nfrom mmseg.models import FCNHead'), None),
    (ValueError('a number'), None),
]


@pytest.mark.parametrize('error, package', FAILURES)
def test_what_is_taken_for_an_absent_package(error, package):
    assert wanted_package(error, ['mmseg']) == package
    assert wanted_package(error, []) is None


def test_the_cause_is_looked_at():
    try:
        try:
            raise ImportError("No module named 'mmagic.models'")
        except ImportError as error:
            raise RuntimeError('no network') from error
    except RuntimeError as error:
        assert wanted_package(error, ['mmseg', 'mmagic']) == 'mmagic'


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or version('torch').split('+')[0] != PINS['torch'],
    reason='not the versions of requirements.txt, with which everything is installed',
)
def test_nothing_is_absent_where_everything_is_installed():
    assert conftest.ABSENT == []
