"""What fails before the first iteration has ended is one line, and one image is validated on."""

import random
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from fba_mm import LocalLearningError, localize
from fba_mm.preflight.start import build_loops, readable_start
from tests.test_analysis.small_configs import classifier
from tests.test_tools.in_process import untouched_process, without_niceties


def _config(work_dir, local=False, **changes) -> Config:
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(
            type='fba_mm.HandwrittenDigits',
            split='train',
            indices=10,
            pipeline=[dict(type='PackInputs')],
        ),
    )
    cfg = Config(
        dict(
            classifier(norm='BN').to_dict(),
            work_dir=str(work_dir),
            log_level='WARNING',
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='Accuracy'),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
            val_cfg=dict(),
            visualizer=dict(type='Visualizer', vis_backends=[]),
            custom_hooks=[dict(type='EMAHook')],
        )
    )
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 10
    cfg = localize(cfg, num_modules=2) if local else cfg
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture()
def train(tmp_path):
    def run(**kwargs):
        with untouched_process(), without_niceties():
            runner = Runner.from_cfg(_config(tmp_path, **kwargs))
            build_loops(runner)
            with readable_start(runner):
                runner.train()
        return runner

    return run


def _log(folder) -> str:
    return next(folder.rglob('*.log')).read_text()


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            {'train_dataloader.drop_last': True, 'train_dataloader.batch_size': 11},
            'train_dataloader has no batch: .* fewer than batch_size=11.* set drop_last=False',
        ),
        ({'train_dataloader.dataset.indices': 0}, 'train_dataloader .*the data set has no images'),
        ({'val_dataloader.dataset.indices': 0}, 'val_dataloader .*the data set has no images'),
        ({'train_cfg.val_interval': 0}, 'train_cfg.val_interval=0: give a number from 1'),
        ({'train_cfg.max_epochs': 0}, 'train_cfg.max_epochs=0: give a number from 1'),
        (
            {'default_hooks': dict(checkpoint=dict(type='CheckpointHook', save_best='mAP'))},
            "CheckpointHook waits for the metric 'mAP', but those of val_evaluator start with acc",
        ),
        ({'val_evaluator.type': 'Acuracy'}, "nothing is registered as 'Acuracy'"),
        (
            {'param_scheduler': dict(type='MultiStepLR')},
            "training cannot start .TypeError: .*'milestones'.*the traceback is in the log",
        ),
        ({'custom_hooks.0.ema_type': 'Ema'}, 'training cannot start .*Ema'),
        (
            {'model.head.in_channels': 63},
            r'one image was validated on before training, and failed \(RuntimeError: .*shapes '
            r'cannot.*linear.py:[0-9]+\): check the config, the traceback is in the log file',
        ),
        (
            {'local': True, 'model.backbone.auxiliary.head.head.in_channels': 63},
            r'the first iteration failed \(RuntimeError: .*shapes cannot.*linear.py:[0-9]+\)',
        ),
    ],
)
def test_refused_in_one_line(changes, words, train, tmp_path):
    local = changes.pop('local', False)
    with pytest.raises(LocalLearningError, match=words) as info:
        train(local=local, **changes)
    assert '\n' not in str(info.value) and not list(tmp_path.glob('*.pth'))
    if 'log file' in str(info.value):
        assert re.search('Traceback', _log(tmp_path))


def test_later_failures_are_not_the_configs(train, monkeypatch):
    """They may be anything, and a traceback is what helps then."""

    def fail(self, *args):
        raise RuntimeError('after the last iteration')

    monkeypatch.setattr('mmengine.hooks.CheckpointHook.after_train_epoch', fail)
    with pytest.raises(RuntimeError, match='after the last iteration'):
        train()


def test_the_validation_leaves_no_trace(train, monkeypatch):
    """Training draws the same numbers, and the metric counts no image twice."""
    seen = []
    from mmpretrain.evaluation import Accuracy

    monkeypatch.setattr(
        Accuracy,
        'process',
        lambda self, batch, samples: (
            self.results.extend([1] * len(samples)),
            random.random(),
            np.random.rand(),
            torch.rand(1),
        ),
    )
    monkeypatch.setattr(Accuracy, 'compute_metrics', lambda self, results: dict(a=len(results)))
    monkeypatch.setattr(
        'mmengine.runner.EpochBasedTrainLoop.run_epoch',
        lambda loop: (
            seen.append(
                (
                    random.random(),
                    np.random.rand(),
                    float(torch.rand(1)),
                    loop.runner.model.training,
                )
            ),
            setattr(loop, '_epoch', 1),
        ),
    )
    for interval in (1, 9):
        runner = train(**{'randomness.seed': 3, 'train_cfg.val_interval': interval})
        assert runner.model.training is False or interval == 9
        assert not runner.val_evaluator.metrics[0].results
    monkeypatch.setattr('fba_mm.preflight.start.validate_one', lambda runner: None)
    train(**{'randomness.seed': 3})
    assert seen[0] == seen[1] == seen[2]
