"""Profiling a training step from the command line."""

import json
import re

import pytest

from fba_mm.analysis.memory_fit import predict_memory

from ..test_analysis.small_configs import classifier, detector, local_detector, super_resolution
from .in_process import run_tool
from .test_bad_input import assert_refused

TOOL = 'analysis_tools/profile_training'


@pytest.fixture
def written(tmp_path):
    """``written(cfg, name)``: the path of a config, as a file."""

    def write(cfg, name='small'):
        cfg.dump(tmp_path / f'{name}.py')
        return tmp_path / f'{name}.py'

    return write


@pytest.mark.slow
def test_a_stock_config_made_local(written, tmp_path, capsys):
    result = run_tool(
        TOOL,
        written(detector()),
        '--local',
        3,
        '--batch',
        2,
        '--size',
        64,
        96,
        '--twins',
        'checkpointing',
        '--rounds',
        1,
        '--out',
        tmp_path / 'out',
        '--cfg-options',
        'model.backbone.frozen_stages=0',
        capsys=capsys,
    )
    assert result.status == 0, result.err
    assert 'local, K=3' in result.out and '2×3×64×96' in result.out
    found = json.loads((tmp_path / 'out/profile.json').read_text())
    assert [one['kind'] for one in found['variants']] == ['local'] + 3 * ['checkpointing']
    assert found['shape'] == [2, 3, 64, 96] and found['local'] == [3]
    assert found['cfg_options'] == {'model.backbone.frozen_stages': 0}
    for one in found['variants']:
        assert one['median_seconds'] > 0 and one['peak_to_bp'] is None
    assert found['variants'][0]['modules'][0]['segments'].startswith('stem')
    for picture in ('memory', 'frontier'):
        assert (tmp_path / f'out/{picture}.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_several_numbers_and_heads_in_one_table(written, tmp_path, capsys):
    result = run_tool(
        TOOL, written(detector()), '--local', 1, 2, '--auxiliary', 'light', 'pooled',
        '--twins', 'bp',
        '--shape', 2, 3, 64, 64, '--rounds', 0, '--out', tmp_path, capsys=capsys,
    )  # fmt: skip
    assert result.status == 0, result.err
    found = json.loads((tmp_path / 'profile.json').read_text())['variants']
    names = [
        'local, K=1, light heads',
        'local, K=2, light heads',
        "local, K=1, the model's head",
        "local, K=2, the model's head",
        'BP',
    ]
    assert [one['name'] for one in found] == names
    table = result.out[result.out.index('One training step') :]
    rows = [line for line in table.splitlines() if line.strip().startswith(('local', 'BP'))]
    assert [re.split('  +', row.strip())[:2] for row in rows] == [
        [name, 'no' if 'K=2' in name else 'yes'] for name in names
    ]
    assert 'K = 1 is plain back-propagation' in result.out
    assert not (tmp_path / 'frontier.png').exists()


@pytest.mark.slow
def test_a_generator_made_local(written, tmp_path, capsys):
    result = run_tool(
        TOOL,
        written(super_resolution()),
        '--local',
        'auto',
        '--memory-budget',
        '1GB',
        '--shape',
        2,
        3,
        16,
        16,
        '--rounds',
        0,
        '--out',
        tmp_path,
        capsys=capsys,
    )
    assert result.status == 0, result.err
    assert 'num_modules=1: ' in result.out
    found = json.loads((tmp_path / 'profile.json').read_text())
    assert [one['kind'] for one in found['variants']] == [
        'local',
        'bp',
        'accumulation',
        'checkpointing',
        'checkpointing',
        'accumulation',
        'forward',
    ]


@pytest.mark.slow
def test_as_many_modules_as_fit(written, tmp_path, capsys):
    """What was predicted to fit does, measured."""
    shape = (2, 3, 192, 192)
    one, two = (predict_memory(local_detector(number), shape).total for number in (1, 2))
    budget = (one + two) // 2
    result = run_tool(
        TOOL,
        written(detector()),
        '--local',
        'auto',
        '--auxiliary',
        'shared',
        '--memory-budget',
        budget,
        '--shape',
        *shape,
        '--twins',
        'bp',
        '--rounds',
        0,
        '--out',
        tmp_path,
        capsys=capsys,
    )
    assert result.status == 0, result.err
    assert 'num_modules=2: ' in result.out
    local, bp = json.loads((tmp_path / 'profile.json').read_text())['variants']

    def total(one):
        return (
            one['peak_bytes'] + one['resident']['parameters'] + one['resident']['optimizer_state']
        )

    assert total(local) <= budget < total(bp)


@pytest.mark.slow
def test_several_configs_get_a_folder_each(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = [written(local_detector(light=True), 'local'), written(classifier(), 'stock')]
    result = run_tool(
        TOOL, *paths, '--shape', 1, 3, 64, 64, '--rounds', 0, '--amp', '--local', 2,
        '--twins', 'bp',
        capsys=capsys,
    )  # fmt: skip
    assert result.status == 0, result.err
    kinds = ['local', 'bp']
    for name, modules in (('local', 3), ('stock', 2)):
        folder = tmp_path / 'work_dirs/profile_training' / name
        found = json.loads((folder / 'profile.json').read_text())
        assert [one['kind'] for one in found['variants']] == kinds and found['amp'] == 'bfloat16'
        # --local is for stock configs: the other keeps its own three modules.
        assert len(found['variants'][0]['modules']) == modules
        assert found['variants'][0]['median_seconds'] is None
        assert (folder / 'memory.png').exists()
    # Both in one table; nothing was timed, so there is no picture of them.
    _, _, together = result.out.partition('A training step, peak')
    lines = [line.split() for line in together.splitlines()]
    rows = [line for line in lines if line[:1] in (['local'], ['stock'])]
    assert [row[0] for row in rows] == ['local', 'stock']
    for name, mib, *_ in rows:
        path = tmp_path / 'work_dirs/profile_training' / name / 'profile.json'
        bp = json.loads(path.read_text())['variants'][1]
        nbytes = bp['peak_bytes'] + sum(bp['resident'].values())
        assert mib == f'{nbytes / 2**20:,.0f}'
    assert not (folder.parent / 'frontier.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, words',
    [
        (['--shape', 1, 3, 8, 8], ['1×3×8×8', 'another shape']),
        (['--shape', 2, 1, 64, 64], ['2×1×64×64', 'takes 3']),
        (['--shape', 2, 3, 0, 64], ['--shape', 'positive']),
        (['--batch', 0], ['--batch', 'positive']),
        (['--size', 64, 64, 64], ['--size', 'one number or two']),
        (['--shape', 2, 3, 64, 64, '--batch', 2], ['--shape says it all']),
        (['--rounds', -1], ['--rounds -1', '0 or more']),
        (['--device', 'meta'], ["'meta'", "'cpu' or 'cuda'"]),
        (['--local', 100], ['num_modules=100']),
        (['--auxiliary', 'light'], ['--auxiliary light', '--local 4']),
        (['--memory-budget', '1GB'], ['--memory-budget 1GB', '--local auto']),
        (['--local', 'auto', '--memory-budget', '1MB', '--shape', 2, 3, 64, 64], ['2×3×64×64']),
        (['--cfg-options', 'model.backbone=1'], ['no model.backbone']),
        (['--cfg-options', 'model.backbone.depth.x=1'], ['--cfg-options', 'do not fit']),
        (['--cfg-options', 'model.neck.type=FBN'], ["'FBN'", 'spelling']),
        (['--cfg-options', 'optim_wrapper=None'], ['no optim_wrapper']),
    ],
)
def test_what_cannot_be_profiled(options, words, written, tmp_path, capsys):
    result = run_tool(
        TOOL,
        written(detector()),
        '--rounds',
        0,
        '--twins',
        '--out',
        tmp_path / 'out',
        *options,
        capsys=capsys,
    )
    assert_refused(result, *words)
    assert not (tmp_path / 'out').exists()


def test_configs_that_are_none(written, tmp_path, capsys):
    assert_refused(run_tool(TOOL, tmp_path / 'absent.py', capsys=capsys), 'absent.py', 'not found')
    (tmp_path / 'empty.py').write_text('x = 1')
    assert_refused(run_tool(TOOL, tmp_path / 'empty.py', capsys=capsys), 'no model')


def test_folders_that_cannot_be(written, tmp_path, capsys):
    path = written(detector())
    assert_refused(run_tool(TOOL, path, '--out', path, capsys=capsys), '--out', 'is a file')
    (tmp_path / 'other').mkdir()
    twin = tmp_path / 'other/small.py'
    twin.write_text(path.read_text())
    assert_refused(run_tool(TOOL, path, twin, capsys=capsys), 'small', 'one by one')


def test_cuda_where_there_is_none(written, monkeypatch, capsys):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    result = run_tool(TOOL, written(detector()), '--device', 'cuda', capsys=capsys)
    assert_refused(result, "'cuda'", "'cpu'")
