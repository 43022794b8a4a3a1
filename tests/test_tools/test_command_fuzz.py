"""Mutated calls of tools/test.py and tools/export.py; ``python -m tests.command_fuzz`` has more."""

from .. import command_fuzz


def test_each_runs_or_is_refused_in_one_line():
    found = command_fuzz.results(count=24, seed=0)
    assert {result.partition(':')[0] for result in found.values()} == {'ran', 'refused', 'usage'}, (
        found
    )
