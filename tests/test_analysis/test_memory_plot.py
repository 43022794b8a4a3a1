import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.image import imread

from fba_mm.analysis.memory import StepMemory, mark, measure_step
from fba_mm.analysis.memory_plot import MIB, draw_memory
from fba_mm.errors import LocalLearningError


def step_memory(peak_mib=8, seconds=2.0, marks=()) -> StepMemory:
    timeline = [
        (0.0, 0),
        (seconds / 4, peak_mib * MIB // 2),
        (seconds / 2, peak_mib * MIB),
        (seconds * 0.75, MIB),
    ]
    return StepMemory(peak_mib * MIB, 100, timeline, list(marks), seconds)


def drawn_line(axes, number):
    """The x and y of a variant's line; after each comes its peak's marker."""
    line, marker = axes.lines[2 * number : 2 * number + 2]
    assert line.get_drawstyle() == 'steps-post'
    return list(line.get_xdata()), list(line.get_ydata()), marker


def values(axes):
    return [text for text in axes.texts if 'MiB' in text.get_text()]


def overlap(texts):
    boxes = [
        super(type(text), text).get_window_extent()
        if hasattr(text, 'xy')
        else text.get_window_extent()
        for text in texts
    ]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_saved_picture(tmp_path):
    out_file = tmp_path / 'new' / 'folder' / 'memory.png'
    figure = draw_memory({'BP': step_memory()}, out_file, title='RetinaNet')
    height, width = imread(out_file).shape[:2]
    assert (width, height) == (1350, 750)
    assert figure.axes[0].get_title(loc='left') == 'RetinaNet'
    # Nothing of pyplot's global state is used.
    assert not plt.get_fignums()


def test_lines_equal_the_timelines_in_seconds(tmp_path):
    timelines = {'BP': step_memory(8), 'local': step_memory(3, seconds=5.0)}
    (axes,) = draw_memory(timelines, tmp_path / 'memory.png', x_axis='seconds').axes
    for number, memory in enumerate(timelines.values()):
        x, y, marker = drawn_line(axes, number)
        seconds, nbytes = zip(*memory.timeline)
        assert x == [*seconds, memory.seconds]
        assert [height * MIB for height in y] == [*nbytes, nbytes[-1]]
        assert marker.get_xydata().tolist() == [[memory.seconds / 2, memory.peak_bytes / MIB]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['BP', 'local']
    assert [text.get_text() for text in values(axes)] == ['8.0 MiB', '3.0 MiB']
    assert axes.get_xlabel() == 'time [s]'


def test_shares_stretch_every_step_to_the_same_width(tmp_path):
    timelines = {'BP': step_memory(8), 'local': step_memory(3, seconds=5.0)}
    (axes,) = draw_memory(timelines, tmp_path / 'memory.png').axes
    for number in range(2):
        x, _, marker = drawn_line(axes, number)
        assert x == pytest.approx([0, 25, 50, 75, 100])
        assert list(marker.get_xdata()) == [50]
    assert axes.get_xlabel() == 'share of the step [%]'


def test_a_measured_step(tmp_path):
    def step():
        x = torch.ones(2**18).exp()
        mark('sum')
        x.sum()

    found = measure_step(step)
    (axes,) = draw_memory({'exp': found}, tmp_path / 'memory.png', x_axis='seconds').axes
    x, y, _ = drawn_line(axes, 0)
    assert [height * MIB for height in y] == [0, MIB, 2 * MIB, MIB, MIB + 4, 0, 0]
    assert x[:-1] == [moment for moment, _ in found.timeline]
    assert x[-1] == found.seconds


def test_marks_are_drawn_lightly_and_named(tmp_path):
    memory = step_memory(marks=[('backward', 1.0), ('update', 1.5)])
    (axes,) = draw_memory({'BP': memory}, tmp_path / 'memory.png', x_axis='seconds').axes
    assert [line.get_xdata()[0] for line in axes.lines[2:]] == [1.0, 1.5]
    assert all(line.get_alpha() < 0.5 for line in axes.lines[2:])
    assert [text.get_text() for text in axes.texts if text not in values(axes)] == [
        'backward',
        'update',
    ]


def test_texts_do_not_hide_each_other(tmp_path):
    memory = step_memory(marks=[('backward', 1.0), ('update', 1.01)])
    (axes,) = draw_memory({str(i): memory for i in range(5)}, tmp_path / 'memory.png').axes
    assert len(values(axes)) == 5
    assert not overlap(values(axes))
    names = [text for text in axes.texts if text not in values(axes) and text.get_visible()]
    assert [text.get_text() for text in names] == ['backward']


def test_a_peak_between_the_samples_is_drawn_at_its_height(tmp_path):
    memory = step_memory(8)
    memory.peak_bytes = 120 * MIB  # as on CUDA, where the line is read at the borders of modules
    (axes,) = draw_memory({'BP': memory}, tmp_path / 'memory.png').axes
    _, y, marker = drawn_line(axes, 0)
    assert max(y) == 8
    assert marker.get_xydata().tolist() == [[50, 120]]
    assert [text.get_text() for text in values(axes)] == ['120 MiB']
    assert axes.get_ylim()[1] > 120


def test_what_falls_below_the_baseline_is_shown(tmp_path):
    memory = StepMemory(MIB, 9 * MIB, [(0.0, 0), (1.0, MIB), (2.0, -4 * MIB)], [], 3.0)
    (axes,) = draw_memory({'BP': memory}, tmp_path / 'memory.png').axes
    assert axes.get_ylim()[0] < -4


def test_a_step_without_any_tensor(tmp_path):
    (axes,) = draw_memory({'nothing': measure_step(lambda: None)}, tmp_path / 'memory.png').axes
    assert [text.get_text() for text in values(axes)] == ['0.0 MiB']


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(LocalLearningError, match='measure at least one step'):
        draw_memory({}, tmp_path / 'memory.png')
    with pytest.raises(LocalLearningError, match="give 'share' or 'seconds'"):
        draw_memory({'BP': step_memory()}, tmp_path / 'memory.png', x_axis='ops')
