"""Which process has which part of a model, and that nothing but the placement says so."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from fba_mm import (
    LocalDataParallel,
    LocalLearningError,
    LocalModuleParallel,
    LocalShardedDataParallel,
    localize,
)
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.compat.torch_versions import fully_shard
from fba_mm.distributed import DataParallel, ModuleParallel, Sharded, Whole, placement_of
from fba_mm.engine import LocalAccuracyHook
from fba_mm.preflight.building import build_model

from ..local_training import Trainer
from ..several_processes import run_in_processes
from ..test_analysis.small_configs import classifier
from .test_module_parallel import MapsClassifier, batch, network

# What torch is too old for, see test_sharded_data_parallel.py, is left out.
WRAPPERS = [LocalDataParallel, LocalModuleParallel]
WRAPPERS += [] if fully_shard is None else [LocalShardedDataParallel]


def test_a_plain_model_is_whole():
    model = network()
    placement = placement_of(model)
    assert type(placement) is Whole and placement.model is model and placement.is_whole
    assert (placement.modules_here, placement.received, placement.seed_rank) == (None, None, 0)
    placement.check(None, 'all')


def test_a_wrapper_that_knows_no_local_losses():
    placement = placement_of(nn.DataParallel(model := network()))
    assert type(placement) is Whole and placement.model is model and not placement.is_whole
    with pytest.raises(LocalLearningError, match='^DataParallel would not reduce the gradients'):
        placement.check(None, 'past')


def asked(rank):
    """What placements answer, and how often the model's own loss is asked in a step."""
    found = {}
    for wrapper in WRAPPERS:
        model = wrapper(network())
        placement = placement_of(model)
        trainer = Trainer(model, apply='eager')
        with mock.patch.object(
            MapsClassifier, 'loss', side_effect=MapsClassifier.loss, autospec=True
        ) as loss:
            trainer.step(batch())
        own = [call for call in loss.call_args_list if call.args[0] is model.module]
        found[wrapper.__name__] = (
            type(placement),
            placement.is_whole,
            placement.seed_rank,
            placement.modules_here,
            len(own),
        )
        placement.gather_weights()
    return found


def test_kinds():
    for rank, found in enumerate(run_in_processes(2, asked)):
        assert isinstance(found, dict), found
        here = found['LocalModuleParallel'][3]
        assert found.pop('LocalDataParallel') == (DataParallel, True, rank, None, 1)
        # Without the last module, the model's own loss is never asked, and nothing ends within it.
        assert found.pop('LocalModuleParallel') == (ModuleParallel, False, 0, here, 1 - rank)
        assert (4 in here) == (rank == 0) and (0 in here) == (rank == 1)
        if found:
            assert found.pop('LocalShardedDataParallel') == (Sharded, False, rank, None, 1)


class Brightening(MapsClassifier):
    """Changes its images before the backbone, the same way each time."""

    def extract_feat(self, inputs):
        return super().extract_feat(inputs + 0.5)


def brightened(rank):
    model = network()
    model.__class__ = Brightening
    model = LocalModuleParallel(model)
    Trainer(model).step(batch() if rank else None)
    model.placement._flush()  # The other process is to see what was sent.
    return 'trained'


def test_images_that_the_loss_changes():
    """Modules in other processes have run on them as they were."""
    error, outcome = run_in_processes(2, brightened)
    assert isinstance(error, LocalLearningError) and 'on other images' in str(error)
    assert outcome == 'trained'


def accuracies(rank):
    """Of modules in validation, before and after the model is taken apart."""
    found = []
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for wrapper in (None, *WRAPPERS):
            torch.manual_seed(0)
            cfg = localize(classifier('BN'), 3, auxiliary=dict(type='Greedy', num_classes=5))
            inner = build_model(cfg)
            data = synthetic_batch(inner, (4, 3, 64, 64))
            model = wrapper(inner) if wrapper else inner
            hook, runner = (
                LocalAccuracyHook(),
                SimpleNamespace(model=model, message_hub=mock.Mock()),
            )
            if wrapper:
                Trainer(model.train())
            placement_of(model).gather_weights()
            model.eval()
            hook.before_val_epoch(runner)
            for _ in range(2):
                model.val_step(data)
                hook.after_val_iter(runner, 0, data)
            metrics = {}
            hook.after_val_epoch(runner, metrics)
            found.append(metrics)
    return found


def test_validation_runs_all_modules_in_every_process():
    for found in run_in_processes(2, accuracies):
        assert isinstance(found, list), found
        assert found[0].keys() == {'local_1/accuracy', 'local_2/accuracy'}
        assert all(metrics == found[0] for metrics in found)
