"""Training, testing and exporting, as a user does it from the command line."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from fba_mm.compat.torch_versions import autocast_dtype

from .in_process import ROOT, run_tool


def _logged(out):
    return [line for line in out.splitlines() if ' - INFO - ' in line]


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    """What tools/export.py made of the training: a checkpoint and a config."""
    root = tmp_path_factory.mktemp('exported')
    assert (
        run_tool(
            'export',
            trained.config,
            trained.checkpoint,
            root / 'stock.pth',
            '--out-config',
            root / 'stock.py',
        ).status
        == 0
    )
    return root


def _test(config, checkpoint, work_dir):
    """Metrics and predictions of tools/test.py, on all that the model finds."""
    result = run_tool(
        'test',
        config,
        checkpoint,
        '--work-dir',
        work_dir,
        '--out',
        work_dir / 'out.pkl',
        '--cfg-options',
        'model.test_cfg.score_thr=0.0',
    )
    assert result.status == 0
    metrics = json.loads(next(work_dir.glob('*/*.json')).read_text())
    metrics = {key: value for key, value in metrics.items() if 'coco' in key}
    predictions = [
        sample['pred_instances'] for sample in pickle.loads((work_dir / 'out.pkl').read_bytes())
    ]
    assert metrics and all(len(one['scores']) for one in predictions)
    return metrics, predictions


def test_exported_model_is_the_trained_one(trained, exported, tmp_path):
    """The same metrics and predictions, by the exported config and by the one it came from."""
    metrics, predictions = _test(trained.config, trained.checkpoint, tmp_path / 'local')
    wrapped_config, _ = _test(trained.config, exported / 'stock.pth', tmp_path / 'wrapped')
    stock_metrics, stock = _test(exported / 'stock.py', exported / 'stock.pth', tmp_path / 'stock')
    assert metrics == stock_metrics == wrapped_config
    assert len(predictions) == len(stock) == 4
    for ours, theirs in zip(predictions, stock):
        assert all(torch.equal(ours[key], theirs[key]) for key in ('bboxes', 'scores', 'labels'))


def test_exported_config_is_stock(exported):
    cfg = Config.fromfile(exported / 'stock.py')
    assert cfg.model.backbone.type == 'ResNet' and cfg.optim_wrapper.type == 'OptimWrapper'
    assert not cfg.custom_hooks
    checkpoint = torch.load(exported / 'stock.pth')  # Safe for everyone.
    assert set(checkpoint) == {'meta', 'state_dict'}


@pytest.mark.slow
def test_exported_model_trains_on_locally(exported, trained, config, tmp_path, capsys):
    """From a stock checkpoint, the auxiliary networks alone start anew."""
    result = run_tool(
        'train',
        config(f"load_from = '{exported / 'stock.pth'}'", epochs=1),
        '--work-dir',
        tmp_path / 'work',
        capsys=capsys,
    )
    assert result.status == 0
    assert 'the auxiliary networks start from their own initialization' in result.out
    assert 'do not match exactly' not in result.out


def test_missing_neck_is_reported(exported, config, tmp_path, capsys):
    checkpoint = torch.load(exported / 'stock.pth')
    for key in [key for key in checkpoint['state_dict'] if key.startswith('neck.fpn_convs.0')]:
        del checkpoint['state_dict'][key]
    torch.save(checkpoint, tmp_path / 'lean.pth')
    result = run_tool(
        'train',
        config(f"load_from = '{tmp_path / 'lean.pth'}'", epochs=1),
        '--work-dir',
        tmp_path / 'work',
        capsys=capsys,
    )
    assert result.status == 0
    mismatch = result.out[result.out.index('do not match exactly') :]
    assert 'neck.fpn_convs.0.conv.weight' in mismatch
    assert 'auxiliary.0' not in mismatch.splitlines()[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, expected',
    [
        (['--local', '4'], ['Local learning in 4 modules', 'local_3.loss']),
        (['--local', 'stages'], ['Local learning in', 'local_1.loss']),
        (['--local', '4', '--amp'], ['Local learning in 4 modules', 'local_3.loss']),
        (['--local=1', '--launcher', 'none'], ['num_modules=1:']),
        (['--local', '4', '--auxiliary', 'light'], ['Local learning in 4 modules', 'local_3.loss']),
        (
            ['--local', 'auto', '--memory-budget', '60MB'],
            ['num_modules=1: ', ': fits', 'plain back-propagation'],
        ),
        (['--memory-budget', '1GB'], ['plain back-propagation, nothing is needed']),
        ([], []),
    ],
    ids=['K', 'stages', 'amp', 'K = 1', 'light', 'auto', 'plan', 'stock'],
)
def test_local_makes_a_stock_config_local(options, expected, config, tmp_path, capsys):
    path = config(
        "train_dataloader['dataset']['indices'] = 2\nval_dataloader = None\n"
        'val_evaluator = None\nval_cfg = None',
        base='bp',
        epochs=1,
    )
    work_dir = tmp_path / 'work'
    result = run_tool(
        'train',
        path,
        '--work-dir',
        work_dir,
        *options,
        '--cfg-options',
        'train_cfg.val_interval=9',
        'optim_wrapper.optimizer.lr=0.001',
        capsys=capsys,
    )
    assert result.status == 0, result.err
    for word in expected:
        assert word in result.out
    assert bool('local_1.loss' in result.out) == any('local_' in word for word in expected)
    cfg = Config.fromfile(work_dir / 'small.py')
    assert cfg.optim_wrapper.optimizer.lr == 0.001
    if '--amp' in options:
        assert cfg.optim_wrapper.type == 'AmpLocalOptimWrapper'
        assert autocast_dtype('cpu') == torch.bfloat16
    # What was started can be started again from the config in the work directory.
    assert ('LocalBackbone' in cfg.model.backbone.type) == any(
        option.startswith('--local') for option in options
    )


@pytest.mark.slow
def test_exact_checkpointing(config, tmp_path):
    """The losses of plain training, bit by bit; what it saves is exported to a stock checkpoint."""
    path = config(
        "train_dataloader['dataset']['indices'] = 4\nval_dataloader = None\n"
        'val_evaluator = None\nval_cfg = None',
        base='bp',
        epochs=1,
    )
    logs = []
    for name, options in (
        ('plain', []),
        ('recomputed', ['--checkpoint', '3']),
        ('sliced', ['--checkpoint', 'blocks', '--slices']),
    ):
        assert run_tool('train', path, '--work-dir', tmp_path / name, *options).status == 0
        rows = next(tmp_path.glob(f'{name}/*/vis_data/scalars.json')).read_text().splitlines()
        logs.append([json.loads(row)['loss'] for row in rows])
    assert logs[1] == logs[0] and logs[2] == pytest.approx(logs[0], rel=1e-5)
    cfg = Config.fromfile(tmp_path / 'sliced/small.py')
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.custom_hooks == [dict(type='IterationSeedHook')]
    assert cfg.model.bbox_head.loss_cls.of == 'FocalLoss'
    assert (
        run_tool(
            'export',
            tmp_path / 'sliced/small.py',
            tmp_path / 'sliced/epoch_1.pth',
            tmp_path / 'stock.pth',
            '--out-config',
            tmp_path / 'stock.py',
        ).status
        == 0
    )
    stock = torch.load(tmp_path / 'stock.pth')['state_dict']
    plain = torch.load(tmp_path / 'plain/epoch_1.pth', weights_only=False)['state_dict']
    assert stock.keys() == plain.keys()
    assert all(torch.allclose(stock[k], v, atol=1e-5) for k, v in plain.items())
    assert (
        Config.fromfile(tmp_path / 'stock.py').model.bbox_head
        == Config.fromfile(path).model.bbox_head
    )


def test_auto_scale_lr(config, tmp_path, capsys):
    path = config(
        'auto_scale_lr = dict(enable=False, base_batch_size=8)\n'
        "train_dataloader['dataset']['indices'] = 2",
        epochs=1,
    )
    result = run_tool(
        'train', path, '--work-dir', tmp_path / 'work', '--auto-scale-lr', capsys=capsys
    )
    assert result.status == 0
    # 2 images instead of 8, in the first of the 4 iterations that the rate warms up over.
    assert 'lr: 5.0000e-05' in result.out


def _config_at_start(tool, monkeypatch, *args):
    """The config with which a tool goes to the runner."""
    from fba_mm import command_line

    seen = []

    def stop(cfg):
        seen.append(cfg)
        raise SystemExit(0)

    monkeypatch.setattr(command_line, 'build_runner', stop)
    assert run_tool(tool, *args).status == 0
    return seen[0]


@pytest.mark.parametrize(
    'options, wrapper',
    [
        ([], 'OptimWrapper'),
        (['--local', '4'], 'LocalOptimWrapper'),
        (['--local', '4', '--amp'], 'AmpLocalOptimWrapper'),
    ],
)
def test_name_in_a_package(options, wrapper, monkeypatch, tmp_path):
    from mmdet.datasets import CocoDataset

    monkeypatch.chdir(tmp_path)
    # Where COCO lies beside the work directory, nothing more needs to be said.
    for split in ('train2017', 'val2017'):
        (tmp_path / 'data/coco' / split).mkdir(parents=True)
        (tmp_path / 'data/coco/annotations').mkdir(exist_ok=True)
        (tmp_path / 'data/coco' / split / '1.jpg').touch()
        (tmp_path / f'data/coco/annotations/instances_{split}.json').write_text(
            json.dumps(
                dict(
                    images=[dict(id=1, file_name='1.jpg', height=64, width=64)],
                    annotations=[
                        dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0)
                    ],
                    categories=[
                        dict(id=i, name=name)
                        for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)
                    ],
                )
            )
        )
    cfg = _config_at_start(
        'train', monkeypatch, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', *options
    )
    kind = '_local4' if options else ''
    assert cfg.work_dir == f'./work_dirs/retinanet_r50_fpn_1x_coco{kind}'
    assert cfg.optim_wrapper.type == wrapper
    assert (cfg.model.backbone.type == 'LocalBackbone') == any(
        option.startswith('--local') for option in options
    )
    assert cfg.launcher == 'none'
    assert [path.name for path in (tmp_path / 'work_dirs').glob('*/*')] == ['.lock']


@pytest.mark.parametrize(
    'given, work_dir',
    [
        (['--work-dir', 'mine'], 'mine'),
        (['--cfg-options', 'work_dir=set'], 'set'),
        (['--work-dir', 'mine', '--cfg-options', 'work_dir=set'], 'mine'),
        ([], './work_dirs/small'),
    ],
)
def test_work_dir(given, work_dir, config, monkeypatch, tmp_path):
    path = config()
    monkeypatch.chdir(tmp_path)
    assert _config_at_start('train', monkeypatch, path, *given).work_dir == work_dir


def test_show_dir(trained, tmp_path):
    result = run_tool(
        'test',
        trained.config,
        trained.checkpoint,
        '--work-dir',
        tmp_path / 'work',
        '--show-dir',
        'painted',
        '--cfg-options',
        'default_hooks.visualization.interval=1',
    )
    assert result.status == 0
    assert list((tmp_path / 'work').rglob('painted/*'))


@pytest.mark.parametrize('tool', ['train', 'test', 'export'])
def test_help(tool, capsys):
    result = run_tool(tool, '--help', capsys=capsys)
    assert result.status == 0 and '--trust-checkpoint' in result.out


@pytest.mark.slow
def test_nothing_is_imported_that_the_task_does_not_need(trained, tmp_path):
    """Building a detector takes mmdet, not the packages of other tasks that are installed."""
    code = f"""
import sys
sys.argv = ['tools/train.py', {str(trained.config)!r}, '--work-dir', {str(tmp_path / 'work')!r}]
sys.path.insert(0, {str(ROOT / 'tools')!r})
import train
others = lambda: [name for name in ('mmagic', 'mmseg', 'diffusers', 'mmpretrain', 'mmdet')
                  if name in sys.modules]
print('imported', others())
from fba_mm.preflight.building import build_model
from fba_mm.config import load_config
build_model(load_config({str(trained.config)!r}))
print('built', others())
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith(('imported', 'built'))]
    assert lines[0] == 'imported []', result.stderr
    # mmdet.models itself imports mmpretrain where that is installed.
    assert lines[1] in ("built ['mmdet']", "built ['mmpretrain', 'mmdet']"), result.stderr
