"""A checkpoint from a stranger runs no code, unless the user says that it may."""

import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.logging import history_buffer
from mmengine.runner.checkpoint import _load_checkpoint

from .in_process import ROOT, run_tool
from .payloads import CONFIG_TEXTS, PAYLOADS, write_payload
from .test_bad_input import assert_refused

pytestmark = pytest.mark.slow

USES = ['load', 'resume', 'auto', 'initialization', 'test', 'export']
# Each way in meets the subtlest payload and a plain one, one way in meets them all.
PAIRS = [
    (use, payload)
    for use in USES
    for payload in PAYLOADS
    if use == 'resume' or payload in ('meta', 'getattr')
]


@pytest.fixture()
def marker(tmp_path, monkeypatch):
    # One payload replaces this, where it gets through.
    monkeypatch.setattr(history_buffer, 'np', history_buffer.np)
    return tmp_path / 'code has run'


def _use(use, config, checkpoint, tmp_path, capsys, *more):
    """Hand a checkpoint to a tool in one of the ways there are."""
    work_dir = tmp_path / 'work'
    pretrained = f"dict(type='Pretrained', checkpoint='{checkpoint}')"
    text = {
        'load': f"load_from = '{checkpoint}'",
        'initialization': f'model = dict(init_cfg={pretrained})',
    }.get(use, '')
    config = config(text, epochs=2 if use in ('resume', 'auto') else 1)
    arguments = {
        'resume': ['train', config, '--resume', checkpoint],
        'auto': ['train', config, '--resume'],
        'test': ['test', config, checkpoint],
        'export': ['export', config, checkpoint, tmp_path / 'out.pth'],
    }.get(use, ['train', config])
    if use == 'auto':
        work_dir.mkdir()
        (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    if use != 'export':
        arguments += ['--work-dir', work_dir]
    return run_tool(*arguments, *more, capsys=capsys)


@pytest.mark.parametrize('use, payload', PAIRS)
def test_no_code_runs(use, payload, trained, config, tmp_path, marker, capsys):
    path = write_payload(payload, tmp_path / 'gift.pth', trained.checkpoint, marker)
    result = _use(use, config, path, tmp_path, capsys)
    assert not marker.exists()
    assert_refused(result, 'gift.pth wants to run code', '--trust-checkpoint')
    assert not list((tmp_path / 'work').rglob('*.pth'))


@pytest.mark.parametrize('payload', CONFIG_TEXTS)
@pytest.mark.parametrize('use', ['resume', 'auto', 'test'])
def test_config_text_is_not_executed(use, payload, trained, config, tmp_path, marker, capsys):
    path = write_payload(payload, tmp_path / 'gift.pth', trained.checkpoint, marker)
    result = _use(use, config, path, tmp_path, capsys)
    assert not marker.exists()
    assert result.status == 0, result.err
    # Nor is it handed on.
    for path in (tmp_path / 'work').rglob('*.pth'):
        written = torch.load(path, weights_only=False)
        assert marker.name not in f'{written["meta"]} {written["message_hub"]["runtime_info"]}'


@pytest.mark.parametrize(
    'use, payload',
    [
        ('auto', 'meta'),
        ('initialization', 'meta'),
        ('test', 'meta'),
        ('export', 'meta'),
        ('resume', 'message_hub'),
        ('resume', 'config text'),
    ],
)
def test_trusted_checkpoints_load_as_before(
    use, payload, trained, config, tmp_path, marker, capsys
):
    path = write_payload(payload, tmp_path / 'mine.pth', trained.checkpoint, marker)
    result = _use(use, config, path, tmp_path, capsys, '--trust-checkpoint')
    assert marker.exists()
    assert result.status == 0, result.err


@pytest.mark.parametrize('payload', ['getattr', 'meta'])
def test_these_payloads_work_where_nothing_guards(payload, trained, tmp_path, marker):
    """Otherwise the tests above would prove nothing."""
    path = write_payload(payload, tmp_path / 'gift.pth', trained.checkpoint, marker)
    with suppress(Exception):
        _load_checkpoint(str(path))
    assert marker.exists()


@pytest.mark.parametrize('payload', ['all of it', 'eval', 'state_dict', 'config text that clings'])
def test_payloads_run_when_unpickled(payload, trained, tmp_path, marker):
    from mmengine.config import Config

    path = write_payload(payload, tmp_path / 'gift.pth', trained.checkpoint, marker)
    checkpoint = torch.load(path, weights_only=False)
    if payload in CONFIG_TEXTS:
        Config.fromstring(checkpoint['meta']['config'], file_format='.py')
    assert marker.exists()


@pytest.mark.slow
def test_as_a_process(trained, tmp_path, marker):
    path = write_payload('meta', tmp_path / 'gift.pth', trained.checkpoint, marker)
    result = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/train.py',
            trained.config,
            '--resume',
            path,
            '--work-dir',
            tmp_path / 'work',
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1 and not marker.exists()
    assert 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f'error: checkpoint {path} wants to run code')


@pytest.fixture()
def server(tmp_path, monkeypatch):
    """Serves ``tmp_path / 'zoo'`` on this machine alone."""
    (tmp_path / 'zoo').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *args: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / 'zoo'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{http.server_port}'
        http.shutdown()


@pytest.mark.parametrize('payload', ['meta', 'getattr'])
def test_downloaded_checkpoint(payload, server, trained, config, tmp_path, marker, capsys):
    write_payload(payload, tmp_path / 'zoo/gift.pth', trained.checkpoint, marker)
    result = _use('load', config, f'{server}/gift.pth', tmp_path, capsys)
    assert not marker.exists()
    assert_refused(result, 'gift.pth wants to run code')


@pytest.mark.parametrize('payload', ['meta', 'getattr'])
def test_checkpoint_by_a_name_of_the_model_zoo(
    payload, trained, config, tmp_path, marker, capsys, monkeypatch
):
    """MMEngine reads these with a list of its own of what is safe."""
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text('{"gift": "gift.pth"}')
    write_payload(payload, tmp_path / 'gift.pth', trained.checkpoint, marker)
    result = _use('load', config, 'open-mmlab://gift', tmp_path, capsys)
    assert not marker.exists()
    assert_refused(result, 'open-mmlab://gift wants to run code')


def test_genuine_downloaded_checkpoint(server, trained, config, tmp_path, capsys):
    """Its log history needs more than torch allows of itself."""
    shutil.copy(trained.checkpoint, tmp_path / 'zoo/good.pth')
    result = _use('test', config, f'{server}/good.pth', tmp_path, capsys)
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    'use, words',
    [
        ('load', ['absent.pth', '404', 'check its address']),
        ('test', ['absent.pth', '404', 'check its address']),
        ('resume', ['cannot resume', 'download it']),
    ],
)
def test_download_that_fails(use, words, server, config, tmp_path, capsys):
    assert_refused(_use(use, config, f'{server}/absent.pth', tmp_path, capsys), *words)
