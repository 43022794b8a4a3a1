"""Running the command-line tools inside the test's process, where imports are paid for once."""

import importlib.util
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.visualization import Visualizer

from fba_mm import command_line

ROOT = Path(__file__).resolve().parents[2]
DEMO = dict(
    fba=ROOT / 'configs/demo/retinanet_r34_fba_digits.py',
    bp=ROOT / 'configs/demo/retinanet_r34_digits.py',
)


@contextmanager
def untouched_process():
    """What a tool changes in its process is as before afterwards."""
    safe_globals = getattr(mmengine_checkpoint, 'get_torch_safe_globals', None)
    kinds = [MMLogger, MessageHub, DefaultScope, *_with_subclasses(Visualizer)]
    instances = [dict(kind._instance_dict) for kind in kinds]
    handlers = list(logging.getLogger().handlers)
    with mock.patch.dict('os.environ'), mock.patch.object(
        CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes)
    ), mock.patch.object(torch, 'load', torch.load):
        try:
            yield
        finally:
            if safe_globals is not None:
                mmengine_checkpoint.get_torch_safe_globals = safe_globals
            for kind in set(_with_subclasses(Visualizer)) - set(kinds):
                kind._instance_dict.clear()
            for kind, before in zip(kinds, instances):
                for name in set(kind._instance_dict) - set(before):
                    for handler in getattr(kind._instance_dict[name], 'handlers', []):
                        handler.close()
                kind._instance_dict.clear()
                kind._instance_dict.update(before)
            logging.getLogger().handlers[:] = handlers
            torch.use_deterministic_algorithms(False)


def _with_subclasses(kind: type) -> list:
    return [kind, *(one for sub in kind.__subclasses__() for one in _with_subclasses(sub))]


@contextmanager
def without_niceties():
    """Formatting config files, and collecting a large process's garbage, takes half the time."""
    with mock.patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True)), mock.patch(
        'mmengine.dataset.base_dataset.gc'
    ):
        yield


def load_tool(name: str):
    """The module ``tools/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *args, capsys=None):
    """Run a tool as its command line would.

    Returns:
        ``status``, and ``out`` and ``err`` if ``capsys`` is given.
    """
    if capsys is not None:
        capsys.readouterr()
    status = 0
    argv = [f'tools/{name}.py', *map(str, args)]
    with untouched_process(), without_niceties(), mock.patch.object(sys, 'argv', argv):
        try:
            command_line.run(load_tool(name).main)
        except SystemExit as error:
            status = error.code
    out, err = capsys.readouterr() if capsys is not None else ('', '')
    return SimpleNamespace(status=status, out=out, err=err)


def write_config(path: Path, data: Path, text: str = '', base: str = 'fba', **settings) -> Path:
    """Write a config of the demo's, made small enough for tests.

    Args:
        path: Where to.
        data: The data set.
        text: Python lines that follow.
        base: ``'fba'`` or ``'bp'``, of the demo's configs.
        **settings: ``epochs`` and ``checkpoint`` (its interval).
    """
    epochs = settings.get('epochs', 2)
    loader = (
        f'dict(batch_size=2, num_workers=0, persistent_workers=False, '
        f"dataset=dict(data_root='{data}/'))"
    )
    resolved = Path(data) / f'{base}.py'
    if not resolved.exists():
        # Resolved once: looking up what is inherited from mmdet takes longer than the rest.
        cfg = Config.fromfile(DEMO[base])
        for part in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            for step in part.dataset.pipeline:
                if step.type == 'Resize':
                    step.scale = (64, 64)
        if base == 'fba':
            # So that there are auxiliary parameters to save, to resume and to leave out.
            cfg.model.backbone.auxiliary.blocks_per_stage = 1
        cfg.dump(resolved)
    path.write_text(f"""_base_ = ['{resolved}']
train_dataloader = {loader}
val_dataloader = {loader}
test_dataloader = {loader}
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval={settings.get('checkpoint', 1)}, max_keep_ckpts=-1))
log_processor = dict(window_size=1)
{text}
""")
    return path
