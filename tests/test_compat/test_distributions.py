"""What a user is told to install fits what is there."""

import re
from pathlib import Path

import pytest

from fba_mm.compat import distributions
from fba_mm.compat.distributions import how_to_install

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    'there, package, command',
    [
        (['mmdet', 'mmcv'], 'mmseg', 'pip install mmsegmentation==1.2.2 ftfy regex'),
        (['mmcv-lite', 'mmengine'], 'mmpretrain', 'pip install mmpretrain==1.2.0'),
        (['onedl-mmdetection', 'onedl-mmcv'], 'mmseg', 'pip install onedl-mmsegmentation'),
        ([], 'mmdet', 'pip install onedl-mmdetection'),
        (['mmdet'], 'mmagic', 'pip install mmagic==1.2.0 '),
        ([], 'torch', 'pip install torch torchvision'),
    ],
)
def test_commands_fit_what_is_there(there, package, command, monkeypatch):
    monkeypatch.setattr(distributions, 'is_installed', lambda name: name in there)
    assert how_to_install(package).startswith(command)


def test_the_extras_name_the_same_distributions():
    text = (ROOT / 'setup.py').read_text()
    for name in distributions._CONTINUED.values():
        assert re.search(rf"'{name}[^-\w]", text), name
