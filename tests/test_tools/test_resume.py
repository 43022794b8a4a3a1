"""A training that was stopped and resumed is the training that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from ..conftest import needs_float16
from .in_process import ROOT, load_tool, run_tool

SGD = "dict(_delete_=True, type='SGD', lr=.02, momentum=.9)"
FLIPPED = """
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=.5), dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs')]
"""
VARIANTS = {
    'past, end, AdamW': '',
    'all, eager, SGD': f"""
custom_hooks = [dict(type='FBAHook', scope='all', log_terms=True)]
optim_wrapper = dict(apply='eager', optimizer={SGD}, clip_grad=None)""",
    'all, end, accumulating': """
custom_hooks = [dict(type='FBAHook', scope='all')]
optim_wrapper = dict(accumulative_counts=2)""",
    'past, eager, accumulating, SGD': f"""
optim_wrapper = dict(accumulative_counts=2, apply='eager', optimizer={SGD})""",
    'bfloat16': "optim_wrapper = dict(type='AmpLocalOptimWrapper', dtype='bfloat16')",
    'float16, scaled, eager': """
optim_wrapper = dict(type='AmpLocalOptimWrapper', dtype='float16', apply='eager',
                     loss_scale=dict(init_scale=1024., growth_interval=3))
train_dataloader['dataset']['indices'] = 4""",
    'EMA': "custom_hooks = [dict(type='FBAHook'), dict(type='EMAHook', momentum=.1)]",
    'BP': 'model = dict(backbone=dict(num_modules=1, recompute=3))',
}
BY_ITERATION = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, val_interval=8)
train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
default_hooks['checkpoint'].update(by_epoch=False, interval=3)
log_processor['by_epoch'] = False
"""


def losses(work_dir):
    """What the log says of each iteration, by its number; later runs overrule earlier ones."""
    steps = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), key=os.path.getmtime):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                steps[row['iter']] = {
                    key: value
                    for key, value in row.items()
                    if 'loss' in key or key in ('lr', 'grad_norm')
                }
    return steps


def assert_resumed_alike(config, checkpoint, stop, tmp_path):
    """Train without a stop, and again from a checkpoint of so many iterations."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert run_tool('train', config, '--work-dir', whole).status == 0
    assert (
        run_tool('train', config, '--work-dir', resumed, '--resume', whole / checkpoint).status == 0
    )
    expected, got = losses(whole), losses(resumed)
    assert sorted(got) == list(range(stop + 1, len(expected) + 1))
    assert got == {step: expected[step] for step in got}
    last = sorted(path.name for path in resumed.glob('*.pth'))[-1]
    ours, theirs = (torch.load(root / last, weights_only=False) for root in (resumed, whole))
    for key in ('state_dict', 'ema_state_dict'):
        for name, tensor in theirs.get(key, {}).items():
            assert torch.equal(tensor, ours[key][name]), name
    return expected


@pytest.mark.slow
@pytest.mark.parametrize(
    'variant',
    [
        pytest.param(name, marks=[needs_float16] * ('float16' in name))
        for name in VARIANTS
        # Those of the whole bank are resumed by iteration, below.
        if not name.startswith('all')
    ],
)
def test_resume_by_epoch(variant, config, tmp_path):
    text = VARIANTS[variant] + FLIPPED
    images = 4 if 'growth_interval' in text else 10
    expected = assert_resumed_alike(config(text), 'epoch_1.pth', images // 2, tmp_path)
    last = max(expected)
    local = [key for key in expected[last] if key.startswith('local_')]
    assert bool(local) == (variant != 'BP')
    assert expected[last] != expected[last // 2]


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['all, eager, SGD', 'all, end, accumulating'])
def test_resume_by_iteration(variant, config, tmp_path):
    text = VARIANTS[variant] + BY_ITERATION + FLIPPED
    assert_resumed_alike(config(text), 'iter_3.pth', 3, tmp_path)


@pytest.mark.slow
def test_resume_within_an_epoch(config, tmp_path):
    text = (
        VARIANTS['past, eager, accumulating, SGD']
        + FLIPPED
        + """
default_hooks['checkpoint'].update(by_epoch=False, interval=3)
train_dataloader.update(num_workers=2)"""
    )
    assert_resumed_alike(config(text), 'iter_3.pth', 3, tmp_path)


@pytest.mark.slow
def test_resume_in_place(config, tmp_path):
    """--resume without a value goes on from the latest checkpoint of the work directory."""
    path, work_dir = config(epochs=2), tmp_path / 'work'
    assert run_tool('train', path, '--work-dir', work_dir).status == 0
    expected = losses(work_dir)
    (work_dir / 'epoch_2.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    for scalars in work_dir.glob('*/vis_data/scalars.json'):
        scalars.unlink()
    assert run_tool('train', path, '--work-dir', work_dir, '--resume').status == 0
    assert losses(work_dir) == {step: expected[step] for step in range(6, 11)}


@pytest.mark.slow
def test_resume_after_a_kill(config, tmp_path):
    """The process dies without a chance to clean up; what it wrote last is good to go on from."""
    path, work_dir = config(epochs=4), tmp_path / 'killed'
    log = tmp_path / 'log.txt'
    with log.open('w') as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / 'tools/train.py', path, '--work-dir', work_dir],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
        deadline = time.monotonic() + 120
        while not (work_dir / 'epoch_2.pth').exists() or len(losses(work_dir)) < 11:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = losses(work_dir)
    assert max(before) < 20, 'it had finished already'
    assert run_tool('train', path, '--work-dir', work_dir, '--resume').status == 0
    assert run_tool('train', path, '--work-dir', tmp_path / 'whole').status == 0
    expected = losses(tmp_path / 'whole')
    assert losses(work_dir) == expected and sorted(expected) == list(range(1, 21))
    assert before == {step: expected[step] for step in before}


def test_resume_with_nothing_there_starts(config, tmp_path):
    """A job script may always say --resume."""
    work_dir = tmp_path / 'work'
    assert run_tool('train', config(epochs=1), '--work-dir', work_dir, '--resume').status == 0
    assert sorted(losses(work_dir)) == [1, 2, 3, 4, 5]


def checkpoint(path, age=0.0):
    """A file that training can go on from, so many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict={}, optimizer={}, message_hub={}, meta=dict(epoch=1, iter=1)), path)
    os.utime(path, times=(time.time() - age,) * 2)
    return str(path)


def starts_from(work_dir, argument=None, **cfg):
    """Where ``tools/train.py`` starts."""
    return load_tool('train').starting_point(
        Config(dict(cfg, work_dir=str(work_dir))),
        SimpleNamespace(resume=argument, trust_checkpoint=False),
    )


def test_weights_to_start_from_are_kept_where_there_is_nothing_to_resume(tmp_path):
    assert starts_from(tmp_path, 'auto') == (None, False)
    assert starts_from(tmp_path, 'auto', load_from='a.pth') == ('a.pth', False)
    assert starts_from(tmp_path, load_from='a.pth') == ('a.pth', False)
    assert starts_from(tmp_path, resume=True) == (None, False)
    # What the user names, train.py puts into the config.
    assert starts_from(tmp_path, 'a.pth', load_from='a.pth', resume=True) == ('a.pth', True)
    saved = checkpoint(tmp_path / 'epoch_1.pth')
    assert starts_from(tmp_path, 'auto', load_from='a.pth') == (saved, True)
    assert starts_from(tmp_path, load_from='a.pth') == ('a.pth', False)


def test_a_restart_goes_on_with_what_the_job_has_saved(tmp_path, monkeypatch):
    old = checkpoint(tmp_path / 'epoch_9.pth', age=100)
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '2')
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    named = dict(resume=True, load_from='a.pth')
    assert starts_from(tmp_path) == (None, False)
    assert starts_from(tmp_path, 'auto') == (old, True)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    # Another training's checkpoint, that nobody asked for.
    assert starts_from(tmp_path) == (None, False)
    assert starts_from(tmp_path, load_from='a.pth') == ('a.pth', False)
    assert starts_from(tmp_path, 'auto') == (old, True)
    assert starts_from(tmp_path, 'a.pth', **named) == ('a.pth', True)
    saved = checkpoint(tmp_path / 'epoch_1.pth', age=-1)
    (tmp_path / 'last_checkpoint').write_text(saved)
    assert starts_from(tmp_path) == starts_from(tmp_path, 'a.pth', **named) == (saved, True)
    assert starts_from(tmp_path, 'auto', load_from='a.pth') == (saved, True)
