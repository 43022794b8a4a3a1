"""The tests that know of devices, on this one."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import List

from journal import Row
from seeded_trainings import ROOT

PATHS = {
    'training': ['tests/test_cuda.py'],
    'operators': ['tests/test_compat', 'tests/test_models'],
}


def outcomes(paths: List[str], device: str) -> dict:
    """Run tests, those of one device alone.

    Args:
        paths: Files and folders of tests.
        device: ``'cuda'`` or ``'cpu'``.

    Returns:
        ``passed``, and the message of each test that ``failed`` or was ``skipped``, by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        chosen = ['-m', 'cuda'] if device == 'cuda' else ['-m', 'not cuda', '-k', 'cpu']
        subprocess.run(
            [
                sys.executable,
                '-m',
                'pytest',
                '-q',
                '-p',
                'no:cacheprovider',
                f'--junitxml={report}',
                *chosen,
                *paths,
            ],
            cwd=ROOT,
        )
        cases = list(ElementTree.parse(report).getroot().iter('testcase'))
    found = dict(passed=0, failed={}, skipped={})
    for case in cases:
        name = f'{case.get("classname")}::{case.get("name")}'
        problem = next(iter([*case.findall('failure'), *case.findall('error')]), None)
        if problem is not None:
            found['failed'][name] = (problem.get('message') or '')[:600]
        elif case.find('skipped') is not None:
            found['skipped'][name] = (case.find('skipped').get('message') or '')[:200]
        else:
            found['passed'] += 1
    return found


def rows(place: dict) -> List[Row]:
    """The rows to run.

    Args:
        place: Device and versions.
    """
    device = place['device']
    return [
        Row(f'tests/{name}', lambda _, paths=paths: outcomes(paths, device), 180, place)
        for name, paths in PATHS.items()
    ]
