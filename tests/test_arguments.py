"""Counts and numbers that users give."""

import math

import pytest

from fba_mm import LocalLearningError
from fba_mm.arguments import check_count, check_number


@pytest.mark.parametrize('value', [0, -1, 1.0, 2.5, True, '2', None, math.nan, math.inf, [1]])
def test_what_is_no_count(value):
    with pytest.raises(LocalLearningError) as info:
        check_count('auxiliary.channels', value, fix=', or leave it unset')
    assert str(info.value) == (
        f'auxiliary.channels={value!r}: give an integer from 1, or leave it unset'
    )


def test_counts():
    assert check_count('x', 1) == 1 and check_count('x', 0, least=0) == 0


@pytest.mark.parametrize('value', [0, 1.5, math.nan, math.inf, -math.inf, True, '0.5', None])
def test_what_is_no_number_in_range(value):
    with pytest.raises(LocalLearningError) as info:
        check_number('dropout', value, above=0, most=1)
    assert str(info.value) == f'dropout={value!r}: give a finite number greater than 0 to 1'


def test_numbers():
    assert check_number('x', 1, most=1) == 1 and check_number('x', 0.0, least=0, below=1) == 0
    with pytest.raises(LocalLearningError, match='from 0 less than 1'):
        check_number('x', 1, least=0, below=1)
