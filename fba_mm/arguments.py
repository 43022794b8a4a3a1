"""Checks of the numbers that users give."""

import math
from typing import Any, Optional

from typing_extensions import TypeGuard  # It comes with torch.

from .errors import LocalLearningError


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether something is a whole number and no boolean.

    Args:
        value: What was given.
    """
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether something is a whole number that is not too small.

    Args:
        value: What was given.
        least: The smallest count.
    """
    return is_integer(value) and value >= least


def check_count(
    name: str, value: Any, least: int = 1, what: str = 'an integer', fix: str = ''
) -> int:
    """Refuse what is no count: fractions, booleans, and integers that are too small.

    Args:
        name: Name of the argument, as a user finds it in a config.
        value: What was given.
        least: The smallest count.
        what: What is counted, in words.
        fix: What else to do, to follow after the smallest count.

    Returns:
        The value.

    Raises:
        LocalLearningError: It is none.

    Example:
        >>> check_count('head_batch_size', 2.5, what='a number of images')
        LocalLearningError: head_batch_size=2.5: give a number of images from 1
    """
    if not is_count(value, least):
        raise LocalLearningError(f'{name}={value!r}: give {what} from {least}{fix}')
    return value


def check_number(
    name: str,
    value: Any,
    least: Optional[float] = None,
    above: Optional[float] = None,
    most: Optional[float] = None,
    below: Optional[float] = None,
    fix: str = '',
) -> float:
    """Refuse what is no finite number, or is out of range.

    Args:
        name: Name of the argument, as a user finds it in a config.
        value: What was given.
        least: The smallest number.
        above: What it has to be greater than.
        most: The greatest number.
        below: What it has to be less than.
        fix: What else to do, to follow after the range.

    Returns:
        The value.

    Raises:
        LocalLearningError: It is none.

    Example:
        >>> check_number('auxiliary.momentum', float('nan'), least=0, most=1)
        LocalLearningError: auxiliary.momentum=nan: give a finite number from 0 to 1
    """
    good = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not good:
        limits = [
            f'{word} {limit}'
            for word, limit in (
                ('from', least),
                ('greater than', above),
                ('to', most),
                ('less than', below),
            )
            if limit is not None
        ]
        raise LocalLearningError(
            f'{name}={value!r}: give {" ".join(["a finite number", *limits])}{fix}'
        )
    return value
