"""The benchmark for a GPU, tried out on the CPU: and what becomes of rows that fail."""

import importlib
import json
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from fba_mm.analysis import TrainingStep

from .several_processes import launch

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / 'benchmarks/cuda'
MIB = 2**20
PLACE = dict(device='cpu', card='CPU', torch=torch.__version__, small=True)


def part(name):
    """A module of the benchmark."""
    with mock.patch.object(sys, 'path', [str(FOLDER), str(FOLDER.parent), *sys.path]):
        return importlib.import_module(name)


journal = part('journal')


@pytest.fixture()
def run(tmp_path):
    """``run(rows)`` goes through rows, Python code by name; returns what the journal says."""

    def run(rows, seconds=20.0, place='p', limit=0.5):
        code = f"""
            import os, sys, time
            sys.path.insert(0, {str(FOLDER)!r})
            from pathlib import Path
            from journal import Journal, Row, work
            rows = [
                Row(name, lambda deadline, code=code: eval(code), {limit}, dict(at={place!r}))
                for name, code in {rows!r}.items()
            ]
            work(rows, Journal(Path({str(path)!r})), {time.time()}, {time.time() + seconds})
        """
        command = [sys.executable, '-c', textwrap.dedent(code)]
        journal.supervise(
            command, journal.Journal(path), time.time() + seconds, tmp_path / 'log.txt'
        )
        return {
            name: lines[-1].get('found', lines[-1].get('error'))
            for name, lines in journal.Journal(path).ends().items()
        }

    path = tmp_path / 'results.jsonl'
    return run


def test_no_row_costs_the_others(run):
    rows = {
        'good': 'dict(a=1)',
        'wrong': '1 / 0',
        'dies': 'os._exit(5)',
        'hangs': 'time.sleep(60)',
        'poisons': 'exec("raise RuntimeError(\'CUDA error: an illegal memory access\')")',
        'last': 'dict(pid=os.getpid())',
    }
    found = run(rows)
    assert list(found) == list(rows)
    assert found['good'] == dict(a=1) and found['last']['pid']
    assert found['wrong'] == 'ZeroDivisionError: division by zero'
    assert found['dies'] == 'its process ended with 5'
    assert found['hangs'].startswith('stopped after')
    assert found['poisons'].startswith('RuntimeError: CUDA error')


def test_goes_on_where_it_stopped(run, tmp_path):
    rows = {'a': 'dict(first=True)', 'b': '1 / 0', 'c': 'time.sleep(60)'}
    begun = time.time()
    assert sorted(run(rows, seconds=4, limit=10)) == ['a', 'b']  # The end of time is no failure.
    assert time.time() - begun < 20
    again = {'a': 'dict(first=False)', 'b': 'dict(late=True)', 'c': 'dict(done=True)'}
    assert run(again) == dict(a=dict(first=True), b=dict(late=True), c=dict(done=True))
    lines = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    # What wasn't tried yet comes before what failed.
    assert [line['row'] for line in lines if 'seconds' in line][:4] == ['a', 'b', 'c', 'b']
    # A result of another card is none of this one's.
    assert run(again, place='q')['a'] == dict(first=False)


def test_a_worker_that_never_begins_is_given_up(tmp_path):
    calls = tmp_path / 'calls'
    command = [sys.executable, '-c', f'open({str(calls)!r}, "a").write("x"); raise SystemExit(1)']
    book = journal.Journal(tmp_path / 'results.jsonl')
    journal.supervise(command, book, time.time() + 20, tmp_path / 'log.txt')
    assert calls.read_text() == 'xx'


# Rows


def test_memory():
    memory = part('memory')
    with mock.patch.dict(
        memory.WAYS, {k: memory.WAYS[k] for k in ('shipped', 'local')}, clear=True
    ):
        measured = memory.measured('small_resnet', 'cpu')
        predicted = memory.predicted('small_resnet')
    assert measured.keys() == predicted.keys() == {'shipped', 'local'}
    for way, found in measured.items():
        # The optimizer of a GPU's step takes all parameters at once.
        assert found['mib'] <= predicted[way]['mib'] <= 2 * found['mib']


@pytest.fixture()
def stand_in():
    """The CPU in the place of a GPU, whose functions are checked for their arguments."""
    steps = part('steps')
    answers = dict(
        is_available=True,
        synchronize=None,
        current_stream=None,
        empty_cache=None,
        reset_peak_memory_stats=None,
        memory_allocated=1000 * MIB,
        max_memory_allocated=3000 * MIB,
        max_memory_reserved=4000 * MIB,
        mem_get_info=(90_000 * MIB, 100_000 * MIB),
        set_per_process_memory_fraction=None,
        get_device_properties=SimpleNamespace(total_memory=100_000 * MIB),
        set_sync_debug_mode=None,
        get_device_name='Stand-in',
    )
    event = mock.Mock(**{'elapsed_time.return_value': 250.0})
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(
                mock.patch(f'torch.cuda.{name}', autospec=True, return_value=answer)
            )
            for name, answer in answers.items()
        }
        stack.enter_context(mock.patch('torch.cuda.Event', lambda enable_timing: event))
        stack.enter_context(
            mock.patch.object(steps, 'TrainingStep', lambda cfg, device: TrainingStep(cfg, 'cpu'))
        )
        yield SimpleNamespace(**found)


def test_memory_of_a_gpu(stand_in):
    memory, run = part('memory'), part('run')
    with mock.patch.dict(memory.WAYS, {'shipped': memory.WAYS['shipped']}, clear=True):
        (found,) = memory.measured('small_resnet', 'cuda').values()
    batch = 4 * 3 * 32 * 32 / MIB  # Predictions leave out what comes from the dataloader.
    assert found == dict(mib=pytest.approx(3000 - batch), reserved=4000, taken=10_000)
    assert run.place_of(SimpleNamespace(device='cuda', small=True))['card'] == 'Stand-in'
    kinds = [part(name) for name in ('marked_tests', 'step_time', 'limits', 'training')]
    place = dict(PLACE, device='cuda', small=False)
    assert all(kind.rows(place) for kind in kinds)


def test_time(stand_in):
    step_time = part('step_time')
    ways = ('shipped', 'with_cp', 'local_blocks')
    found = step_time.timed('small_resnet', 2, 'bfloat16', 'cuda', ways, seconds=0)
    assert list(found) == list(ways)
    for of in found.values():
        assert of['ms'] == [250.0] * 3 and of['median_ms'] == 250 and of['waits']['count'] == 0
        assert 2999 < of['mib'] <= 3000


def test_kernels():
    found = part('step_time').kernels('small_resnet', 2, 'float32', 'cpu')
    assert all(of['busy_ms'] > 0 for of in found.values())
    assert hasattr(torch.autograd.profiler_util.FunctionEventAvg(), 'self_device_time_total')


def test_what_fits_a_smaller_gpu(stand_in):
    """The allocator is capped, and its refusal is what counts."""
    limits, steps = part('limits'), part('steps')
    caps = []
    stand_in.set_per_process_memory_fraction.side_effect = caps.append
    step = steps.Ready.__call__

    def run(ready):
        if len(ready.batch['inputs']) > 3 and caps[-1] < 1:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')
        step(ready)

    with mock.patch.object(steps.Ready, '__call__', run), mock.patch.object(
        limits, 'all_bytes', lambda run, device: 7000 * MIB * len(run.batch['inputs'])
    ):
        found = limits.largest('small_retinanet', 'shipped', 'batch', [25_000 * MIB], 'cuda')
    assert found == {'25000': 3} and {1.0, 0.25} == set(caps) and caps[-1] == 1


def test_a_way_that_does_not_fit_leaves_the_others():
    step_time = part('step_time')
    configure = step_time.ready

    def ready(cfg, way, *args):
        if way == 'with_cp':
            raise torch.cuda.OutOfMemoryError('Tried to allocate 2.00 GiB')
        if way == 'checkpoint':
            raise ValueError('other')
        return configure(cfg, way, *args)

    with mock.patch.object(step_time, 'ready', ready):
        ways = ('with_cp', 'shipped', 'checkpoint')
        found = step_time.timed('small_resnet', 2, 'float32', 'cpu', ways, seconds=0)
    assert found['with_cp'] == dict(error='out of memory')
    assert found['checkpoint'] == dict(error='ValueError: other')
    assert found['shipped']['median_ms'] > 0


def test_host_waits_are_counted_by_line():
    import warnings

    def step():
        for _ in range(3):
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)
        warnings.warn('another one', stacklevel=1)

    modes = []
    with mock.patch('torch.cuda.set_sync_debug_mode', modes.append):
        found = part('step_time').host_waits(step, 'cuda')
    assert found['count'] == 3 and len(found['places']) == 1 and modes == ['warn', 'default']


@pytest.mark.parametrize('wasted', [0.0, 0.1])
@pytest.mark.parametrize('power', [1, 2])
def test_the_largest_that_fits(power, wasted):
    """Of a step that takes 7 + 3 * count^power bytes, and an allocator that can't use all."""
    search, tried = part('limits')._search, []

    def peak(count):
        tried.append(count)
        nbytes = 7 + 3 * count**power
        return nbytes if nbytes * (1 + wasted) <= cap else None

    known = {count**power: 7 + 3 * count**power for count in (1, 2)}
    for cap in (12, 31, 1000, 100_000):
        found = search(peak, known, power, cap)
        best = max(
            (n for n in range(40_000) if (7 + 3 * n**power) * (1 + wasted) <= cap), default=0
        )
        assert best - max(1, best // 40) <= found <= best
    assert search(peak, {2**power: 99, 3**power: 120}, power, cap=5) == 0
    assert len(tried) < 45


@pytest.mark.parametrize('what, expected', [('batch', 3), ('image', 288)])
def test_the_largest_batch_and_image(what, expected):
    limits = part('limits')

    def pixels(run, device):
        return sum(image[0].numel() for image in run.batch['inputs'])

    cap = 3 * 64**2 + 1 if what == 'batch' else 300**2
    with mock.patch.object(limits, 'all_bytes', pixels), mock.patch.object(limits, 'MIB', 1):
        found = limits.largest('small_retinanet', 'shipped', what, [cap], 'cpu')
    assert found == {str(cap): expected}


def test_training(tmp_path):
    training = part('training')
    configs = []

    def train(folder, config, figures_of, threads):
        configs.append(config)
        return dict(accuracy=50.0, seconds_per_epoch=1.0)

    with mock.patch.object(training, 'train', train), mock.patch.object(
        training, 'seconds_by_turns', lambda steps, *_: dict.fromkeys(steps, 0.1)
    ), mock.patch.object(type(training.COMPARISON), 'training_step'):
        found = training.trained(time.time() + 120, False, 'cpu')
        assert found.keys() == {'bp', 'fba', 'auglocal'} and found['fba']['epochs'] == 1
        found = training.trained(time.time() + 60 + 600, False, 'cpu')
    assert found['bp']['epochs'] == int(0.8 * 600 / (3 * 0.1 * 50_000 / 256))
    assert {cfg.train_cfg.max_epochs for cfg in configs[3:]} == {found['bp']['epochs']}


def test_marked_tests(tmp_path):
    """A file of tests is run in a process of its own, and each that failed is named."""
    tests = part('marked_tests')
    (tmp_path / 'test_some.py').write_text(
        'import pytest\n'
        '@pytest.mark.parametrize("device", ["cpu"])\n'
        'def test_good(device): pass\n'
        '@pytest.mark.parametrize("device", ["cpu"])\n'
        'def test_bad(device): assert not "it"\n'
        'def test_of_no_device(): assert False\n'
    )
    with mock.patch.object(tests, 'ROOT', tmp_path):
        found = tests.outcomes(['test_some.py'], 'cpu')
    assert found['passed'] == 1 and list(found['failed']) == ['test_some::test_bad[cpu]']
    assert 'not' in found['failed']['test_some::test_bad[cpu]']


# Several processes


def in_one_of_two(rank, folder):
    processes = part('processes')
    place = dict(PLACE)

    def rows(place):
        def row(name, run):
            return journal.Row(f'processes/{name}', run, 60, place)

        def sends(_):
            sent = torch.ones(())
            processes.dist.all_reduce(sent)
            return dict(way=dict(sum=sent.item()))

        return [row('sends', sends), row('fails', lambda _: 1 / 0)]

    with mock.patch.object(processes, 'rows', rows):
        book = journal.Journal(Path(folder) / 'results.jsonl')
        processes.work_in_processes(place, book, time.time() + 60)


@pytest.mark.slow
def test_rows_of_several_processes(tmp_path):
    outcomes = launch(2, in_one_of_two, str(tmp_path))
    # Both end with a row that fails: one could wait for the other.
    assert all(isinstance(outcome, ZeroDivisionError) for outcome in outcomes)
    ends = journal.Journal(tmp_path / 'results.jsonl').ends()
    found = {name: line.get('found', line.get('error')) for name, (line,) in ends.items()}
    assert list(found) == ['processes/sends', 'processes/fails']
    assert found['processes/sends'] == dict(way=dict(sum=2.0))
    assert found['processes/fails'].startswith('ZeroDivisionError')
    place = journal.Journal(tmp_path / 'results.jsonl').lines()[0]['place']
    assert place == dict(PLACE, processes=2)


# The whole


def test_every_row_has_a_name_of_its_own():
    kinds = [part(name) for name in ('marked_tests', 'memory', 'step_time', 'limits', 'training')]
    for small in (True, False):
        place = dict(PLACE, small=small)
        rows = [row for kind in kinds for row in kind.rows(place)]
        rows += part('memory').predictions(place)
        assert len({row.name for row in rows}) == len(rows)
        assert {row.name.split('/')[0] for row in rows} <= {*part('report').SECTIONS, 'predicted'}


def test_report(tmp_path):
    book = journal.Journal(tmp_path / 'results.jsonl')
    rows = {
        'tests/training': dict(passed=3, failed={'test_a': 'assert 1\n== 2'}, skipped={}),
        'predicted/net': dict(shipped=dict(mib=3979.0), local=dict(error='out of memory')),
        'memory/net': dict(shipped=dict(mib=4100.4, reserved=4500.0), local=dict(error='x')),
        'time/net, 2 images, float32': {
            'shipped': dict(mib=10.0, ms=[9.0, 11.0], median_ms=10.0, waits=dict(count=76)),
            'local': dict(mib=5.0, ms=[12.0], median_ms=12.0, waits=dict(count=80)),
            'with_cp': dict(error='out of memory'),
        },
        'kernels/net': dict(
            local=dict(ms=9.0, busy_ms=8.0, launches=7, synchronizations=6, copies=5)
        ),
        'largest batch/net, local': {'12288': 31},
        'largest image/net, local': 'not what was expected',
        'training/net': dict(bp=dict(epochs=2, accuracy=50.0, step_ms=3.0, seconds_per_epoch=4.0)),
    }
    for name, found in rows.items():
        book.append(row=name, place=PLACE, worker=1, seconds=1.0, found=found)
    book.append(row='time/other', place=PLACE, worker=1, seconds=1.0, error='stopped after 9 s')
    text = part('report').write(book, tmp_path)
    assert (tmp_path / 'table.md').read_text() == text
    for line in (
        f'CPU, torch {torch.__version__}',
        'Tests, training: 3 passed, 1 failed, 0 skipped\n- test_a: assert 1 == 2',
        '| net | 3,979 → 4,100 (4,500) | x |',
        '10; 10 MiB; 76 waits | 12 (1.20); 5 MiB; 80 waits | out of memory |',
        '| net: local | 9 | 8 | 7 | 6 | 5 |',
        '| net, local | 31 |',
        '| net | bp | 2 | 50.00 | 3.0 | 4.0 |',
        '- time/other: stopped after 9 s',
    ):
        assert line in text
    assert 'section: AttributeError' in text  # One that can't be shown doesn't hide the others.
    assert {path.name for path in tmp_path.glob('*.png')} == {'memory.png', 'time.png'}


def test_without_a_device(capsys, tmp_path):
    argv = ['run.py', '--out', str(tmp_path)]
    with mock.patch.object(sys, 'argv', argv), mock.patch(
        'torch.cuda.is_available', lambda: False
    ), pytest.raises(SystemExit):
        part('run').main()
    assert 'no CUDA device: --device cpu --small tries the rows out' in capsys.readouterr().err
