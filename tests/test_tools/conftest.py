"""One small data set and one small training, which the tests of the tools share."""

from types import SimpleNamespace

import pytest

from fba_mm.datasets import build_digits_on_photos

from .in_process import run_tool, write_config


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """10 images to train on and 4 to validate with."""
    root = tmp_path_factory.mktemp('digits')
    build_digits_on_photos(root, num_train=10, num_val=4, image_size=64, digit_size=(12, 28))
    return root


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory):
    """A local training of two epochs: its config and work directory."""
    root = tmp_path_factory.mktemp('trained')
    config = write_config(root / 'small_fba.py', data)
    work_dir = root / 'work'
    assert run_tool('train', config, '--work-dir', work_dir).status == 0
    return SimpleNamespace(config=config, work_dir=work_dir, checkpoint=work_dir / 'epoch_2.pth')


@pytest.fixture()
def config(data, tmp_path):
    """A config file of the test's own; call it with lines that follow."""
    return lambda text='', **kwargs: write_config(tmp_path / 'small.py', data, text, **kwargs)
