"""What the benchmarks share: trainings that go on where they stopped, and schedules of other lengths."""

import importlib
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from mmengine.config import Config
from rich.console import Console

from fba_mm import LocalLearningError
from fba_mm.config import load_config

FOLDER = Path(__file__).parents[1] / 'benchmarks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def benchmark(name):
    with mock.patch.object(sys, 'path', [str(FOLDER), *sys.path]):
        return importlib.import_module(name)


@pytest.mark.parametrize('name', NAMES)
def test_import(name):
    benchmark(name)


@pytest.fixture()
def train(tmp_path):
    """``train()`` with a tool that only makes the work directory, and the number of its calls."""
    module = benchmark('seeded_trainings')
    calls = []

    def run(command, **_):
        calls.append(command)
        return SimpleNamespace(returncode=0)

    def of(config, folder=tmp_path / 'training'):
        return module.train(folder, config, lambda work_dir: dict(mAP=0.5))

    with mock.patch.object(module.subprocess, 'run', run):
        yield SimpleNamespace(of=of, calls=calls)


def test_a_training_is_made_once(train, tmp_path):
    first = train.of('a = 1\nb = dict(c=2)\n')
    # The same settings, however they are written down.
    assert train.of(Config(dict(b=dict(c=2), a=1))) == first and first['mAP'] == 0.5
    assert len(train.calls) == 1
    assert 'config' not in first
    # One that was cut off is begun again.
    (tmp_path / 'training/result.json').unlink()
    train.of('a = 1\nb = dict(c=2)\n')
    assert len(train.calls) == 2


def test_the_result_of_other_settings_is_not_taken(train, tmp_path):
    train.of('a = 1\n')
    before = (tmp_path / 'training/result.json').read_text()
    with pytest.raises(
        LocalLearningError, match='other settings: move it away, or give another --out'
    ):
        train.of('a = 2\n')
    assert (tmp_path / 'training/result.json').read_text() == before and len(train.calls) == 1


def test_after_a_failure_no_other_training_begins():
    begun, failed = [], threading.Event()

    def one(name, seed):
        begun.append(name)
        if name == 'a':
            raise LocalLearningError('no data')
        failed.wait(1)
        return {}

    with pytest.raises(LocalLearningError, match='no data'):
        benchmark('seeded_trainings').run_all(list('abcdef'), [0], one, str, 1, Console(quiet=True))
    assert begun in (['a'], ['a', 'b'])


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        str(FOLDER / 'configs/retinanet_r18_bccd.py'),
    ],
)
@pytest.mark.parametrize('factor', [0.5, 2])
def test_schedules_of_another_length(name, factor):
    """All that counts epochs is stretched alike; what counts iterations stays."""
    cfg = load_config(name)
    before, epochs = [dict(s) for s in cfg.param_scheduler], cfg.train_cfg.max_epochs
    benchmark('detection').set_epochs(cfg, round(epochs * factor))
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == epochs * factor
    for old, new in zip(before, cfg.param_scheduler):
        for key in ('begin', 'end', 'T_max'):
            if key in old:
                assert new[key] == old[key] * (factor if old.get('by_epoch', True) else 1)


def test_the_length_of_equal_time_is_measured_once(tmp_path):
    of = benchmark('detection').epochs_of_equal_time
    assert of(tmp_path, '8 epochs of FBA, K=4', 13.8) == 14
    assert of(tmp_path, '8 epochs of FBA, K=4', 15.1) == 14
    assert of(tmp_path, '16 epochs of FBA, K=4', 29.2) == 29


def test_trainings_of_several_lengths(tmp_path):
    detection = benchmark('detection')
    for epochs, seed, value in ((8, 0, 0.3), (8, 1, 0.4), (20, 0, 0.5)):
        folder = tmp_path / f'{epochs}_epochs/seed_{seed}'
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(json.dumps(dict(mAP=value)))
    found = detection.trained_so_far(tmp_path)
    assert found == {8: {0: dict(mAP=0.3), 1: dict(mAP=0.4)}, 20: {0: dict(mAP=0.5)}}
    detection.draw_time({'BP': found}, {'BP': 1.0}, 'title', tmp_path / 'time.png')
    assert (tmp_path / 'time.png').stat().st_size > 1000
