"""``num_modules='auto'`` and the budget that comes with it, as users write them."""

import math
import re
from typing import Any, Union

from .errors import LocalLearningError

_UNITS = {
    '': 1, 'b': 1,
    'kb': 10**3, 'mb': 10**6, 'gb': 10**9, 'tb': 10**12,
    'kib': 2**10, 'mib': 2**20, 'gib': 2**30, 'tib': 2**40,
}  # yapf: disable
# No step takes less: who says so has left out the unit.
_LEAST = 10**6


def parse_memory(budget: Union[str, int, float]) -> int:
    """The bytes of a memory budget.

    Args:
        budget: A number of bytes, or a string with a unit: GB is 10^9 bytes, GiB 2^30.

    Raises:
        LocalLearningError: It is no such thing, or less than a megabyte.

    Example:
        >>> parse_memory('8GB'), parse_memory('1.5 GiB')
        (8000000000, 1610612736)
    """
    nbytes = math.nan
    if isinstance(budget, str):
        match = re.fullmatch(r'\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*', budget, re.IGNORECASE)
        if match and match[2].lower() in _UNITS:
            nbytes = float(match[1]) * _UNITS[match[2].lower()]
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        nbytes = budget
    if not _LEAST <= nbytes < math.inf:
        raise LocalLearningError(
            f"memory_budget={budget!r}: give it with a unit, as '8GB', '512MB' or '10GiB', or as a "
            'number of bytes from a million'
        )
    return int(nbytes)


def check_budget(num_modules: Any, memory_budget: Any) -> bool:
    """Refuse ``'auto'`` and a budget one without the other.

    Args:
        num_modules: Number of modules, as a user gave it.
        memory_budget: Budget, as a user gave it, or None.

    Returns:
        Whether the number is to be found.

    Raises:
        LocalLearningError: One of them is missing, or the budget is none.

    Example:
        >>> check_budget('auto', '8GB'), check_budget(4, None)
        (True, False)
    """
    auto = num_modules == 'auto'
    if memory_budget is None:
        if auto:
            raise LocalLearningError(
                "num_modules='auto' needs a budget to fit into: give memory_budget='8GB', on the "
                'command line --memory-budget 8GB, or a number of modules'
            )
        return False
    parse_memory(memory_budget)
    if not auto:
        raise LocalLearningError(
            f'memory_budget={memory_budget!r} is there to choose the number of modules, but '
            f"num_modules={num_modules!r}: give num_modules='auto', on the command line --local "
            'auto, or leave the budget out'
        )
    return True
