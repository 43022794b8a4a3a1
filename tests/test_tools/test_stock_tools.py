"""Local learning through MMDetection's own ``tools/train.py``, which knows nothing of it."""

import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mmdet
import pytest
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

from fba_mm import AmpLocalOptimWrapper, LocalLearningError

from .in_process import untouched_process, without_niceties

TOOL = Path(mmdet.__file__).parent / '.mim/tools/train.py'


def train(*args) -> Runner:
    """Run MMDetection's tool, and return its runner."""
    spec = importlib.util.spec_from_file_location('mmdet_train', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    runners = []

    class Kept(Runner):
        def train(self):
            runners.append(self)
            return super().train()

    argv = [str(TOOL), *map(str, args)]
    with untouched_process(), without_niceties(), mock.patch.object(
        tool, 'Runner', Kept
    ), mock.patch.object(sys, 'argv', argv):
        tool.main()
    return runners[0]


@contextmanager
def _as_on_a_gpu():
    """MMEngine's own wrapper refuses other machines."""
    module = sys.modules[AmpOptimWrapper.__module__]
    with mock.patch.object(module, 'is_cuda_available', lambda: True):
        yield


@pytest.mark.slow
def test_mixed_precision_keeps_local_learning(config, data, tmp_path, recwarn):
    """And what ``tools/train.py`` says of boxes is said."""
    content = json.loads((data / 'annotations/instances_train.json').read_text())
    content['annotations'][0]['bbox'] = [5, 5, -3, 10]
    flat = tmp_path / 'flat.json'
    flat.write_text(json.dumps(content))
    path = config(f"train_dataloader['dataset']['ann_file'] = '{flat}'", epochs=1)
    with _as_on_a_gpu():
        runner = train(path, '--work-dir', tmp_path / 'work', '--amp')
    assert type(runner.optim_wrapper) is AmpLocalOptimWrapper
    assert not [w for w in recwarn if 'optimizer.step()' in str(w.message)]
    (log,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if 'lr' in row]
    assert len(rows) == 5 and all('local_1.loss' in row for row in rows)
    # The warm-up of the schedule reaches the optimizer.
    rates = [row['lr'] for row in rows]
    assert rates == sorted(rates) and rates[0] == pytest.approx(rates[-1] / 10)
    assert (tmp_path / 'work/epoch_1.pth').exists()
    (text,) = (tmp_path / 'work').glob('*/*.log')
    assert 'and 1 whose boxes have no area are left out' in text.read_text()


def test_classes_that_the_head_lacks(config, tmp_path):
    few = config('model = dict(bbox_head=dict(num_classes=3))')
    with pytest.raises(LocalLearningError, match='names 10 classes, but the head predicts 3'):
        train(few, '--work-dir', tmp_path / 'work')
