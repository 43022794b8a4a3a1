"""Logs of trainings, as MMEngine writes them, read and drawn."""

import json

import pytest
from matplotlib.image import imread

from fba_mm.analysis.training_log import TrainingLog
from fba_mm.analysis.training_plot import draw_training
from fba_mm.errors import LocalLearningError


def write(folder, rows, stamp='20260101_000000'):
    path = folder / stamp / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def epochs(first, last, length=23, interval=5, modules=2, **more):
    """Rows of a loop over epochs: losses count down, an iteration takes 2 s."""
    rows = []
    for epoch in range(first, last + 1):
        for inner in range(interval, length + 1, interval):
            i = (epoch - 1) * length + inner
            local = {f'local_{k}.loss': 2 / i + k for k in range(1, modules + 1)}
            rows.append(dict(loss=1 / i, time=2.0, epoch=epoch, iter=i, step=i, **local, **more))
        accuracies = {'local_1/accuracy': epoch} if modules else {}
        rows.append({'accuracy/top1': 10.0 * epoch, 'time': 1, 'step': epoch, **accuracies})
    return rows


def test_axes(tmp_path):
    log = TrainingLog.read(write(tmp_path, epochs(1, 3)))
    at, losses = log.series('loss')
    assert at[:4] == [5, 10, 15, 20] and at[4] == 28
    assert losses == [1 / i for i in at]
    # The rows never say that an epoch has 23 iterations: row 28 is of the second, and 5 later.
    assert log.series('accuracy/top1') == ([23, 46, 69], [10, 20, 30])
    assert log.series('accuracy/top1', 'epochs')[0] == [1, 2, 3]
    assert log.series('loss', 'epochs')[0][4] == pytest.approx(28 / 23)
    assert log.series('loss', 'time')[0][:5] == [10, 20, 30, 40, 56]
    assert log.metrics == ['accuracy/top1']
    # The last module's loss is the model's, and its accuracy the network's.
    first = {k: values[0] for k, (_, values) in log.modules('loss').items()}
    assert first == {1: 1.4, 2: 2.4, 3: 0.2}
    assert log.modules('accuracy') == {
        1: ([23, 46, 69], [1, 2, 3]),
        2: ([23, 46, 69], [10, 20, 30]),
    }
    assert set(log.series('time')[1]) == {2.0}, 'validation logs a time, too'


def test_a_resumed_training_is_one(tmp_path):
    """It did the second epoch again, from the first one's checkpoint."""
    write(tmp_path, epochs(1, 2, extra=0))
    write(tmp_path, epochs(2, 3, extra=1), '20260102_000000')
    log = TrainingLog.read(tmp_path)
    at, extra = log.series('extra')
    assert at == sorted(set(at)) and at[-1] == 66
    assert extra == [0] * 4 + [1] * 8
    assert log.series('accuracy/top1')[0] == [23, 46, 69]


def test_a_loop_over_iterations(tmp_path):
    rows = [dict(loss=1.0, time=0.5, iter=i, step=i) for i in (10, 20)]
    rows += [{'Set5/PSNR': 30.0, 'Set5/SSIM': 0.9, 'step': 20}]
    log = TrainingLog.read(write(tmp_path, rows))
    assert not log.has_epochs
    assert log.series('Set5/PSNR') == ([20], [30])
    assert log.metrics[0] == 'Set5/PSNR'
    with pytest.raises(LocalLearningError, match='A was trained without epochs'):
        draw_training({'A': log}, tmp_path / 'x.png', 'epochs')


@pytest.mark.parametrize('x', ['iterations', 'epochs', 'time'])
def test_the_picture(tmp_path, x):
    local = TrainingLog.read(write(tmp_path / 'a', epochs(1, 3, step_memory=9, memory=70)))
    bp = TrainingLog.read(write(tmp_path / 'b', epochs(1, 2, modules=0, step_memory=12)))
    figure = draw_training({'FBA': local, 'BP': bp}, tmp_path / 'new/training.png', x)
    assert imread(tmp_path / 'new/training.png').ndim == 3
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        'loss, last module',
        'accuracy/top1',
        'memory of a step, live tensors [MiB]',
        'time of an iteration [s]',
        'FBA: local loss',
        'FBA: local accuracy [%]',
    ]
    first, second = panels['accuracy/top1'].lines
    assert list(first.get_ydata()) == [10, 20, 30] and list(second.get_ydata()) == [10, 20]
    if x == 'time':
        # 66 iterations of 2 s are more than two minutes.
        assert panels['loss, last module'].lines[0].get_xdata()[-1] == pytest.approx(66 * 2 / 60)
        assert panels['loss, last module'].get_xlabel() == 'time of iterations [min]'


def test_many_modules_name_a_few(tmp_path):
    log = TrainingLog.read(write(tmp_path / 'a', epochs(1, 2, modules=16)))
    figure = draw_training({'FBA': log}, tmp_path / 'x.png')
    (axes,) = (axes for axes in figure.axes if axes.get_title() == 'FBA: local loss')
    assert len(axes.lines) == 17
    names = [text.get_text() for text in axes.get_legend().texts]
    assert 3 <= len(names) <= 7 and names[0] == 'module 1' and names[-1] == 'module 17'


def test_refused(tmp_path):
    with pytest.raises(LocalLearningError, match='has no log of a training'):
        TrainingLog.read(tmp_path)
    (tmp_path / 'scalars.json').write_text('{"loss": ')
    with pytest.raises(LocalLearningError, match='cannot be read'):
        TrainingLog.read(tmp_path / 'scalars.json')
    with pytest.raises(LocalLearningError, match='no iteration of a training yet'):
        TrainingLog.read(write(tmp_path / 'val', [dict(step=1, accuracy=1)]))
    log = TrainingLog.read(write(tmp_path / 'a', epochs(1, 2)))
    with pytest.raises(LocalLearningError, match='metric mAP is in no log.*accuracy/top1'):
        draw_training({'A': log}, tmp_path / 'x.png', metrics=['mAP'])
    with pytest.raises(LocalLearningError, match='no training to draw'):
        draw_training({}, tmp_path / 'x.png')
