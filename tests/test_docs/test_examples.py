"""Every example in a docstring runs, and prints what it says.

An example is run in the names of its module and those that GIVEN_BY has; an error that it is to end
in stands there in one line, ``LocalLearningError: …``. What takes more than that, a trained network
or a second process, is in TAKES_MORE, with what the error names that it ends in without.
"""

import builtins
import doctest
import importlib
import logging
import pkgutil
import warnings
from types import ModuleType
from typing import Iterator

import pytest
import torch
from mmengine.registry import MODELS

import fba_mm
from fba_mm.local.partition import family
from fba_mm.tasks import task

pytestmark = pytest.mark.slow
for package in ('mmdet', 'mmpretrain', 'mmseg', 'mmagic'):
    pytest.importorskip(package)

# Whose names examples take for granted.
GIVEN_BY = (
    'fba_mm',
    'fba_mm.config',
    'fba_mm.analysis',
    'fba_mm.local',
    'fba_mm.local.partition',
    'fba_mm.local.auxiliary',
    'fba_mm.models',
    'fba_mm.planning',
    'mmengine.config',
    'mmengine.registry',
)
TAKES_MORE = {
    'analysis.activation_maps.activation_maps': 'fba',
    'analysis.cka.MinibatchCKA': 'batches',
    'analysis.layer_similarity.compare_networks': 'bp',
    'analysis.trained_network.TrainedNetwork.load': 'bp.py',
    'analysis.training_log.TrainingLog': 'work_dirs/retinanet_r50_fba',
    'analysis.training_plot.draw_training': 'work_dirs/bp',
    'checkpoint.safe_unpickler.load_safely': 'epoch_12.pth',
    'datasets.classification.stl10.STL10': 'data/stl10',
    'datasets.classification.svhn.SVHN': 'data/svhn',
    'datasets.coco_annotations.COCOFile': 'instances_train.json',
    'datasets.source.Source': 'data/svhn',
    'datasets.voc_annotations.VOCFolder': 'ImageSets/Main/trainval.txt',
    'distributed.gradient_reducer.GradientReducer': 'reducer',
    'distributed.message_channel.MessageChannel': 'device',
    'distributed.sharded_part.ShardedPart': 'part',
    'engine.local_optim_wrapper.local_form': 'runner',
    'engine.work_dir_lock.work_dir_lock': 'runner',
    'local.assigned_targets.AssignedTargets': 'data_samples',
    'local.auxiliary.dgl_fpn.DGLFPN': '_base_',
    'local.local_backbone.LocalBackbone': '_base_',
    'planning.out_of_memory.next_way_when_out_of_memory': 'cfg',
}
# What takes seconds each, or depends on what is installed; these functions have tests of their own.
ELSEWHERE = {
    'analysis.training_profile.profile_training',
    'compat.distributions.how_to_install',
    'datasets.digits_on_photos.build_digits_on_photos',
    'datasets.photo_pairs.build_photo_pairs',
    'planning.plan.plan_training',
}


def all_examples() -> Iterator[doctest.DocTest]:
    """Docstrings with examples, of all modules."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(fba_mm.__path__, 'fba_mm.'):
        if not info.name.endswith('__main__'):
            module = importlib.import_module(info.name)
            for test in finder.find(module, globs={}):
                if test.examples:
                    test.module = module
                    yield test


class Names(dict):
    """A module's names, and those of other modules that it lacks."""

    def __missing__(self, name: str):
        for module in GIVEN_BY:
            found = vars(importlib.import_module(module)).get(name)
            if found is not None:
                # A function's module may have its name.
                return vars(found)[name] if isinstance(found, ModuleType) else found
        raise KeyError(name)


EXAMPLES = {test.name[len('fba_mm.') :]: test for test in all_examples()}


def run(test: doctest.DocTest) -> str:
    """What is wrong with a docstring's examples; nothing if they are right."""
    for example in test.examples:
        if example.want.startswith('LocalLearningError: '):
            example.exc_msg = f'fba_mm.errors.{example.want}'
    given = dict(fba_mm=fba_mm, torch=torch, nn=torch.nn, __builtins__=builtins)
    test.globs = Names(vars(test.module), **given)
    report = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False)
    return ''.join(report)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Without what packages log and warn of, and with nothing registered that wasn't before."""
    monkeypatch.setattr(family, '_FAMILIES', list(family._FAMILIES))
    monkeypatch.setattr(task, '_TASKS', dict(task._TASKS))
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS._module_dict))
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize('name', sorted(EXAMPLES.keys() - TAKES_MORE.keys() - ELSEWHERE))
def test_an_example_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not run(EXAMPLES[name])


@pytest.mark.parametrize('name', sorted(TAKES_MORE))
def test_an_example_that_takes_more_cannot_be_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = run(EXAMPLES[name]).rstrip().rpartition('\n')[2]
    assert 'Error: ' in error and TAKES_MORE[name] in error
