"""A user's error is one readable line that says how to fix it, before anything is trained."""

import re
import shutil
import subprocess
import sys

import pytest
import torch

from .in_process import ROOT, run_tool

# Lines that follow a good config and spoil it, and what the message has to say.
SPOILED = {
    'more modules than blocks': (
        'model = dict(backbone=dict(num_modules=100))',
        ['num_modules=100: give 1'],
    ),
    'no module': ('model = dict(backbone=dict(num_modules=0))', ['num_modules=0']),
    'module count in words': ("model = dict(backbone=dict(num_modules='many'))", ["'many'"]),
    'backbone that no partition knows': (
        "model = dict(backbone=dict(backbone=dict(_delete_=True, type='HourglassNet', "
        'num_stacks=1, downsample_times=1, stage_channels=(8, 8), stage_blocks=(1, 1), '
        'feat_channel=8)))',
        ['HourglassNet', 'cannot be cut', 'ResNet'],
    ),
    'no FBAHook': ('custom_hooks = []', ['FBAHook', 'custom_hooks = [']),
    'plain OptimWrapper': (
        "optim_wrapper = dict(type='OptimWrapper')",
        ["type='LocalOptimWrapper'"],
    ),
    'plain AmpOptimWrapper': (
        "optim_wrapper = dict(type='AmpOptimWrapper')",
        ["type='AmpLocalOptimWrapper'"],
    ),
    'FBAHook alone': (
        'model = dict(backbone=dict(_delete_=True, **_base_.model.backbone.backbone))',
        ['no LocalBackbone', "type='LocalBackbone'"],
    ),
    'unregistered optimizer wrapper': (
        "optim_wrapper = dict(type='LocalOptimWraper')",
        ['LocalOptimWraper', "'LocalOptimWrapper'"],
    ),
    'unregistered optimizer': ("optim_wrapper = dict(optimizer=dict(type='AdamV'))", ['AdamV']),
    'unknown apply': ("optim_wrapper = dict(apply='now')", ["'now'", "'eager'"]),
    'unknown scope': (
        "custom_hooks = [dict(type='FBAHook', scope='future')]",
        ["'future'", "'past'"],
    ),
    'unregistered head': ("model = dict(bbox_head=dict(type='RetinaHaed'))", ['RetinaHaed']),
    'unregistered hook': (
        "custom_hooks = [dict(type='FBAHook'), dict(type='EmaHook')]",
        ['EmaHook'],
    ),
    'unknown argument': ('model = dict(neck=dict(depth=3))', ['depth']),
    'auxiliary that nobody registered': (
        "model = dict(backbone=dict(auxiliary=dict(_delete_=True, type='SML')))",
        ['SML'],
    ),
    'auxiliary head for other classes': (
        "model = dict(backbone=dict(auxiliary=dict(type='SLM', channels=16, "
        "head=dict(type='RetinaNet', neck=dict(type='FPN', out_channels=16, num_outs=4, "
        "add_extra_convs='on_output'), "
        'bbox_head=dict(_base_.model.bbox_head, in_channels=16, num_classes=3), '
        'train_cfg=_base_.model.train_cfg))))',
        ['3 classes', '10', 'num_classes'],
    ),
    'auxiliary head with other channels': (
        "model = dict(backbone=dict(auxiliary=dict(type='SLM', channels=16, "
        "head=dict(type='RetinaNet', neck=dict(type='FPN', out_channels=16, num_outs=4, "
        "add_extra_convs='on_output'), "
        'bbox_head=dict(_base_.model.bbox_head, in_channels=24), '
        'train_cfg=_base_.model.train_cfg))))',
        ['auxiliary.head'],
    ),
    'no model': ('model = dict(_delete_=True)', ['model']),
    'no training data': ('train_dataloader = None', ['no train_dataloader']),
    'no optimizer wrapper': ('optim_wrapper = None', ['no optim_wrapper']),
    'no training images': (
        "train_dataloader['dataset'].update(data_prefix=dict(img='trian/'))",
        ['train_dataloader.dataset.data_prefix', 'trian/', 'does not exist'],
    ),
    'no training annotations': (
        "train_dataloader['dataset'].update(ann_file='absent.json')",
        ['train_dataloader.dataset.ann_file', 'absent.json'],
    ),
    'no data': (
        "train_dataloader['dataset'].update(data_root='/nowhere/')",
        ['/nowhere/', '--cfg-options train_dataloader.dataset.data_root=PATH'],
    ),
    'no validation images': (
        "val_dataloader['dataset'].update(data_prefix=dict(img='vla/'))",
        ['val_dataloader.dataset.data_prefix', 'vla/'],
    ),
    'no validation annotations': (
        "val_dataloader['dataset'].update(ann_file='absent.json')",
        ['val_dataloader.dataset.ann_file', 'absent.json'],
    ),
    'no data behind a RepeatDataset': (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, "
        "dataset=dict(_base_.train_dataloader.dataset, data_root='/nowhere/')))",
        ['train_dataloader.dataset.dataset.data_root', '/nowhere/'],
    ),
}


def assert_refused(result, *words):
    """The tool said one line, and what it says holds ``words``."""
    lines = [line for line in result.err.splitlines() if line.startswith('error: ')]
    assert result.status == 1
    assert len(lines) == 1 and 'Traceback' not in result.err + result.out
    assert result.err.rstrip().endswith(lines[0]), 'the error is not the last line'
    assert len(lines[0]) < 700
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize('fault', SPOILED)
def test_train_refuses_a_spoiled_config(fault, config, tmp_path, capsys):
    text, words = SPOILED[fault]
    work_dir = tmp_path / 'work'
    result = run_tool('train', config(text), '--work-dir', work_dir, capsys=capsys)
    assert_refused(result, *words)
    # Hooks are built by the runner, which makes its directory first.
    assert fault in ('unregistered hook', 'unknown scope') or not work_dir.exists()


def test_two_local_backbones(config, tmp_path, capsys):
    # A wrapped backbone around a wrapped backbone is the shortest way to two.
    text = (
        'model = dict(backbone=dict(num_modules=1, backbone=dict(_delete_=True, '
        '**_base_.model.backbone)))'
    )
    result = run_tool('train', config(text), '--work-dir', tmp_path / 'work', capsys=capsys)
    assert_refused(result, '2 LocalBackbones', 'wrap one')
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'text, words',
    [
        ('model = dict(', ['cannot be read', 'SyntaxError']),
        ("_base_ = ['./absent.py']", ['absent.py']),
        ("raise ValueError('first line\\nsecond line')", ['ValueError', 'first line second line']),
        ('x = 1', ['no model']),
    ],
    ids=['syntax error', 'missing base', 'a config that raises', 'nothing in it'],
)
@pytest.mark.parametrize('tool', ['train', 'test', 'export'])
def test_config_that_is_none(tool, text, words, tmp_path, trained, capsys):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    more = {
        'train': [],
        'test': [trained.checkpoint],
        'export': [trained.checkpoint, tmp_path / 'out.pth'],
    }
    work_dir = [] if tool == 'export' else ['--work-dir', tmp_path / 'work']
    result = run_tool(tool, path, *more[tool], *work_dir, capsys=capsys)
    if text == 'x = 1' and tool == 'test':
        words = ['test_dataloader']
    assert_refused(result, *words)
    assert not (tmp_path / 'work').exists() and not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    'name',
    [
        'absent.py',
        'mmdet::retinanet/retinanet_r51_fpn_1x_coco.py',
        'no_such_package::retinanet/retinanet_r50_fpn_1x_coco.py',
    ],
)
@pytest.mark.parametrize('tool', ['train', 'test', 'export'])
def test_config_that_is_not_there(tool, name, tmp_path, capsys):
    more = {'train': [], 'test': ['x.pth'], 'export': ['x.pth', tmp_path / 'out.pth']}
    assert_refused(run_tool(tool, name, *more[tool], capsys=capsys), name)


@pytest.mark.parametrize('value', ['nonsense', '0', '-1', '4.5', '100', ''])
def test_local_with_nonsense(value, data, config, tmp_path, capsys):
    stock = config(base='bp')
    result = run_tool(
        'train', stock, f'--local={value}', '--work-dir', tmp_path / 'work', capsys=capsys
    )
    assert_refused(result, 'num_modules')
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'options, words',
    [
        (['--auxiliary', 'light'], ['--auxiliary light', '--local 4']),
        (['--no-slices'], ['--no-slices goes with --local']),
        (['--checkpoint-head'], ['--checkpoint-head goes with --checkpoint']),
        (['--exact-from', '0.7'], ['--exact-from 0.7 ends what --local begins', 'give --local 4']),
        (['--local', '4', '--exact-from', '70'], ['exact_from=70.0', 'greater than 0 less than 1']),
        (['--memory-budget', '8'], ["'8'", "'8GB'"]),
        (['--memory-budget', '1.2MB'], ['less than parameters and optimizer state alone', 'MiB']),
        (['--local', 'auto'], ['--memory-budget 8GB']),
        (['--local', 'auto', '--memory-budget', '8'], ["'8'", "'8GB'"]),
        (['--local', '4', '--memory-budget', '8GB'], ['num_modules=4', '--local auto']),
        (
            ['--local', 'auto', '--memory-budget', '2MB'],
            ['less than any', 'the least is', 'smaller'],
        ),
    ],
)
def test_what_does_not_go_together(options, words, config, tmp_path, capsys):
    work_dir = tmp_path / 'work'
    result = run_tool('train', config(base='bp'), *options, '--work-dir', work_dir, capsys=capsys)
    assert_refused(result, *words)
    assert not work_dir.exists()


def test_local_twice(config, capsys):
    assert_refused(
        run_tool('train', config(), '--local', 4, capsys=capsys), 'already', 'num_modules'
    )


@pytest.mark.parametrize(
    'options, words',
    [
        (['model.neck.out_channels'], ['key=value']),
        (['model.neck.in_channels=[1,(2]'], ['key=value']),
        (['model.neck.in_channels.7=3'], ['check the keys']),
        (['train_cfg.max_epochs.x=3'], ['check the keys']),
    ],
    ids=['no value', 'brackets', 'index beyond a list', 'key below a number'],
)
def test_bad_overrides(options, words, config, tmp_path, capsys):
    result = run_tool(
        'train', config(), '--work-dir', tmp_path / 'work', '--cfg-options', *options, capsys=capsys
    )
    assert_refused(result, '--cfg-options', *words)
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'content',
    ['', '{"images": [', '[]', '{"images": 3}'],
    ids=['empty', 'cut off', 'a list', 'a number'],
)
@pytest.mark.parametrize('split', ['train', 'val'])
def test_broken_annotations(split, content, data, config, tmp_path, capsys):
    broken = tmp_path / 'broken.json'
    broken.write_text(content)
    text = f"{split}_dataloader['dataset']['ann_file'] = '{broken}'"
    result = run_tool('train', config(text), '--work-dir', tmp_path / 'work', capsys=capsys)
    assert_refused(result, f'{split}_dataloader', 'data')
    assert str(broken) in result.err or content in ('[]', '{"images": 3}')
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('below', ['', '/below/it'])
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_work_dir_that_is_a_file(tool, below, trained, tmp_path, capsys):
    file = tmp_path / 'notes.txt'
    file.write_text('mine')
    more = [trained.checkpoint] if tool == 'test' else []
    result = run_tool(tool, trained.config, *more, '--work-dir', f'{file}{below}', capsys=capsys)
    assert_refused(result, str(file), 'is a file', '--work-dir')
    assert file.read_text() == 'mine'


def test_work_dir_that_cannot_be_written(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('os.access', lambda *args: False)
    result = run_tool('train', trained.config, '--work-dir', tmp_path / 'work', capsys=capsys)
    assert_refused(result, 'not writable', '--work-dir')


def test_checkpoints_go_where_they_cannot(trained, tmp_path, capsys):
    file = tmp_path / 'notes.txt'
    file.write_text('mine')
    result = run_tool(
        'train',
        trained.config,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'default_hooks.checkpoint.out_dir={file}',
        capsys=capsys,
    )
    assert_refused(result, f'{file}/work', 'is a file', 'default_hooks.checkpoint.out_dir')
    assert file.read_text() == 'mine' and not (tmp_path / 'work').exists()


def test_predictions_that_are_there_are_kept(trained, tmp_path, capsys):
    file = tmp_path / 'out.pkl'
    file.write_text('mine')
    arguments = ('test', trained.config, trained.checkpoint, '--work-dir', tmp_path, '--out', file)
    assert_refused(run_tool(*arguments, capsys=capsys), str(file), 'exists', '--overwrite')
    assert file.read_text() == 'mine'
    assert run_tool(*arguments, '--overwrite').status == 0
    assert file.read_bytes() != b'mine'


def test_auto_scale_lr_without_a_batch_size(trained, tmp_path, capsys):
    result = run_tool(
        'train', trained.config, '--work-dir', tmp_path / 'work', '--auto-scale-lr', capsys=capsys
    )
    assert_refused(result, 'base_batch_size')


# Checkpoints -------------------------------------------------------------------------------------


def _spoil(path, fault, good):
    """Write a checkpoint file with a fault."""
    whole = good.read_bytes()
    path.write_bytes(
        {
            'truncated': whole[: len(whole) // 2],
            'without its end': whole[:-100],
            'random': bytes(torch.randint(0, 256, (5000,), dtype=torch.uint8).tolist()),
            'pickle magic': b'\x80\x02' + bytes(range(256)),
            'empty': b'',
            'text': b'<html>404 not found</html>\n',
            'zip': b'PK\x03\x04' + bytes(200),
        }[fault]
    )


FAULTS = ['truncated', 'without its end', 'random', 'pickle magic', 'empty', 'text', 'zip']


@pytest.mark.parametrize(
    'use, fault',
    [('test', fault) for fault in FAULTS]
    + [
        (use, fault)
        for use in ('load', 'resume', 'auto', 'export')
        for fault in ('truncated', 'empty')
    ],
)
def test_corrupt_checkpoint(use, fault, trained, tmp_path, capsys):
    path = tmp_path / 'bad.pth'
    _spoil(path, fault, trained.checkpoint)
    result = _use(use, trained.config, path, tmp_path, capsys)
    assert_refused(result, str(path), 'corrupt', 'no other' if use == 'auto' else 'earlier one')


def _use(use, config, checkpoint, tmp_path, capsys, *more):
    """Give a checkpoint to a tool in one of the ways there are."""
    work_dir, out = tmp_path / 'work', tmp_path / 'out.pth'
    if use == 'auto':
        work_dir.mkdir()
        (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    before = sorted(work_dir.rglob('*'))
    arguments = {
        'load': ['train', config, '--cfg-options', f'load_from={checkpoint}'],
        'resume': ['train', config, '--resume', checkpoint],
        'auto': ['train', config, '--resume'],
        'test': ['test', config, checkpoint],
        'export': ['export', config, checkpoint, out],
    }[use]
    if use != 'export':
        arguments += ['--work-dir', work_dir]
    result = run_tool(*arguments, *more, capsys=capsys)
    if result.status:
        assert sorted(work_dir.rglob('*')) == before and not out.exists()
    return result


@pytest.mark.parametrize('use', ['load', 'resume', 'auto', 'test', 'export'])
def test_missing_checkpoint(use, trained, tmp_path, capsys):
    result = _use(use, trained.config, tmp_path / 'absent.pth', tmp_path, capsys)
    assert_refused(result, 'absent.pth not found')


@pytest.mark.parametrize('use', ['load', 'resume', 'test', 'export'])
@pytest.mark.parametrize(
    'content',
    [[1, 2], torch.zeros(3), dict(meta=[1], state_dict={})],
    ids=['list', 'tensor', 'meta that is none'],
)
def test_file_without_weights(use, content, trained, tmp_path, capsys):
    torch.save(content, tmp_path / 'other.pth')
    result = _use(use, trained.config, tmp_path / 'other.pth', tmp_path, capsys)
    assert_refused(result, 'other.pth')


@pytest.mark.parametrize('use', ['load', 'resume', 'test', 'export'])
def test_checkpoint_of_another_architecture(use, trained, config, tmp_path, capsys):
    deeper = config("""model = dict(
    backbone=dict(backbone=dict(depth=50)), neck=dict(in_channels=[128, 256, 512]))""")
    result = _use(use, deeper, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'does not fit', 'give the config that it was trained with')


def test_resume_with_another_number_of_modules(trained, config, tmp_path, capsys):
    other = config('model = dict(backbone=dict(num_modules=3))')
    result = _use('resume', other, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'does not fit', '.auxiliary.', 'give the config')


@pytest.mark.parametrize(
    'use, absent',
    [('resume', 'optimizer'), ('resume', 'message_hub'), ('resume', 'meta'), ('auto', 'optimizer')],
)
def test_resume_without_what_it_takes(use, absent, trained, tmp_path, capsys):
    checkpoint = torch.load(trained.checkpoint, weights_only=False)
    del checkpoint[absent]
    torch.save(checkpoint, tmp_path / 'lean.pth')
    result = _use(use, trained.config, tmp_path / 'lean.pth', tmp_path, capsys)
    assert_refused(result, f'has no {absent}', 'load_from=')


def test_resume_with_another_optimizer(trained, config, tmp_path, capsys):
    sgd = config("optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=.01))")
    result = _use('resume', sgd, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'SGD', 'optim_wrapper', 'load_from=')
    groups = config('optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.))')
    shutil.rmtree(tmp_path / 'work', ignore_errors=True)
    result = _use('resume', groups, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'parameter groups')


def test_resume_from_a_stock_training(trained, tmp_path, capsys):
    checkpoint = torch.load(trained.checkpoint, weights_only=False)
    checkpoint['state_dict'] = {
        key.replace('backbone.backbone.', 'backbone.'): value
        for key, value in checkpoint['state_dict'].items()
        if '.auxiliary.' not in key
    }
    torch.save(checkpoint, tmp_path / 'stock.pth')
    result = _use('resume', trained.config, tmp_path / 'stock.pth', tmp_path, capsys)
    assert_refused(result, 'no auxiliary networks', 'load_from=')


def test_wrapped_checkpoint_for_the_stock_config(trained, data, config, tmp_path, capsys):
    stock = config(base='bp')
    result = _use('test', stock, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'tools/export.py')


def test_last_checkpoint_in_the_work_dir_stays_as_it_is(trained, tmp_path, capsys):
    """A refused resume leaves the files that are there untouched."""
    work_dir = tmp_path / 'work'
    shutil.copytree(trained.work_dir, work_dir)
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (work_dir / name).write_bytes(trained.checkpoint.read_bytes()[:1000])
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    before = {path: path.read_bytes() for path in work_dir.rglob('*') if path.is_file()}
    result = run_tool('train', trained.config, '--work-dir', work_dir, '--resume', capsys=capsys)
    assert_refused(result, 'corrupt')
    assert before == {path: path.read_bytes() for path in work_dir.rglob('*') if path.is_file()}


@pytest.mark.parametrize('key', ['state_dict', 'model'])
@pytest.mark.parametrize('use', ['test', 'load', 'export'])
def test_weights_that_are_none(use, key, trained, tmp_path, capsys):
    torch.save({key: 1, 'meta': {}}, tmp_path / 'bad.pth')
    result = _use(use, trained.config, tmp_path / 'bad.pth', tmp_path, capsys)
    assert_refused(result, 'bad.pth is corrupt or no checkpoint', f'its {key} is a int')


# tools/test.py and tools/export.py ---------------------------------------------------------------


def test_out_that_is_no_pickle(trained, tmp_path, capsys):
    result = run_tool(
        'test', trained.config, trained.checkpoint, '--out', tmp_path / 'out.json', capsys=capsys
    )
    assert_refused(result, 'out.json', '.pkl')


def test_tta_without_a_pipeline(trained, capsys):
    assert_refused(
        run_tool('test', trained.config, trained.checkpoint, '--tta', capsys=capsys), 'tta_pipeline'
    )


def test_no_test_data(trained, config, tmp_path, capsys):
    absent = config("test_dataloader['dataset']['data_prefix'] = dict(img='tset/')")
    result = _use('test', absent, trained.checkpoint, tmp_path, capsys)
    assert_refused(result, 'test_dataloader.dataset.data_prefix', 'tset/')


def test_broken_test_annotations(trained, config, tmp_path, capsys):
    (tmp_path / 'broken.json').write_text('{')
    broken = config(f"test_dataloader['dataset']['ann_file'] = '{tmp_path}/broken.json'")
    result = run_tool(
        'test', broken, trained.checkpoint, '--work-dir', tmp_path / 'work', capsys=capsys
    )
    assert_refused(result, 'test_dataloader')


def test_a_metric_that_would_fail_after_an_epoch(config, tmp_path, capsys):
    path = config("val_evaluator['metric_items'] = ['mAP_50', 'mAp']")
    result = run_tool('train', path, '--work-dir', tmp_path / 'work', capsys=capsys)
    assert_refused(result, 'metric_items', "'mAp'", 'mAP_75')
    assert not list(tmp_path.rglob('*.pth'))


def test_a_metric_that_fails_in_the_end(trained, config, tmp_path, capsys):
    wrong = config("test_evaluator['metric_items'] = ['mAp']")
    arguments = ('test', wrong, trained.checkpoint, '--work-dir', tmp_path / 'work')
    result = run_tool(*arguments, capsys=capsys)
    assert_refused(result, 'testing failed after the first images', 'mAp', 'traceback', 'log')
    assert any('KeyError' in log.read_text() for log in tmp_path.rglob('*.log'))


def test_predictions_go_where_nothing_can_be_written(trained, tmp_path, capsys):
    arguments = ('test', trained.config, trained.checkpoint, '--work-dir', tmp_path / 'work')
    result = run_tool(*arguments, '--out', '/proc/out.pkl', capsys=capsys)
    assert_refused(result, '/proc cannot be written to', '--out')
    assert not (tmp_path / 'work').exists()


def test_export_of_weights_that_the_stock_model_lacks(trained, tmp_path, capsys):
    content = torch.load(trained.checkpoint, weights_only=False)
    content['state_dict']['neck.more.weight'] = torch.zeros(1)
    torch.save(content, tmp_path / 'more.pth')
    result = _use('export', trained.config, tmp_path / 'more.pth', tmp_path, capsys)
    assert_refused(result, 'does not fit the stock model', 'neck.more.weight', 'config')
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('option', [[], ['--out-config']], ids=['checkpoint', 'config'])
def test_export_overwrites_nothing_unasked(option, trained, tmp_path, capsys):
    mine, new = tmp_path / 'mine.py', tmp_path / 'new.pth'
    mine.write_text('mine')
    outs = [new, *option, mine] if option else [mine]
    result = run_tool('export', trained.config, trained.checkpoint, *outs, capsys=capsys)
    assert_refused(result, 'mine.py exists', '--overwrite')
    assert mine.read_text() == 'mine' and not new.exists()
    outs = [*outs, '--overwrite']
    assert run_tool('export', trained.config, trained.checkpoint, *outs, capsys=capsys).status == 0
    assert mine.read_bytes() != b'mine'


def test_export_where_nothing_can_be_written(trained, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    for out in (tmp_path / 'file/out.pth', tmp_path):
        result = run_tool(
            'export', trained.config, trained.checkpoint, out, '--overwrite', capsys=capsys
        )
        assert_refused(result, 'cannot write', str(out))
    result = run_tool(
        'export',
        trained.config,
        trained.checkpoint,
        tmp_path / 'out.pth',
        '--out-config',
        tmp_path / 'out.txt',
        capsys=capsys,
    )
    assert_refused(result, 'out.txt', '.py')
    assert not (tmp_path / 'out.pth').exists()


def test_export_of_a_stock_config(trained, data, config, tmp_path, capsys):
    stock = config(base='bp')
    result = _use('export', stock, trained.checkpoint, tmp_path, capsys)
    assert result.status == 1 and 'Traceback' not in result.err


# In processes of their own -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('train', ['absent.py']),
        ('test', ['absent.py', 'absent.pth']),
        ('export', ['absent.py', 'absent.pth', 'out.pth']),
    ],
)
def test_process_ends_with_one_line_and_status_1(tool, arguments, tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / f'{tool}.py', *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert re.fullmatch(r'error: config absent\.py not found .*\n', result.stderr)
    assert not result.stdout and not list(tmp_path.iterdir())
