"""Which task a config and its model are for, and what a user's own task is asked."""

import pytest
from mmengine.config import Config
from torch import nn

from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.errors import LocalLearningError
from fba_mm.localize import localize
from fba_mm.planning.ways import Series, ways_to_train
from fba_mm.preflight.building import build_model
from fba_mm.preflight.classes import check_classes
from fba_mm.preflight.data import check_data
from fba_mm.tasks import Task, num_classes_of, register_task, task, task_of, task_of_model

from ..segmentation import training as segmentor
from ..test_analysis.small_configs import classifier, detector, super_resolution


@pytest.fixture
def tasks_of_a_user(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(task, '_TASKS', dict(task._TASKS))


@pytest.mark.parametrize(
    'make, name, classes, key',
    [
        (detector, 'detection', 3, 'backbone'),
        (classifier, 'classification', 5, 'backbone'),
        (segmentor, 'segmentation', 4, 'backbone'),
        (super_resolution, 'super-resolution', None, 'generator'),
    ],
)
def test_a_config_and_its_model_are_for_one_task(make, name, classes, key):
    cfg = make()
    model = build_model(cfg)
    assert task_of(cfg).name == task_of_model(model).name == name
    assert num_classes_of(cfg.model) == num_classes_of(model) == classes
    assert task_of(cfg).backbone_key == key and key in cfg.model


def test_classes_beside_those_of_objects_do_not_count():
    """An RPN has one class, a head for maps has its own, and a backbone may be left out."""
    model = dict(
        rpn_head=dict(num_classes=1),
        roi_head=dict(bbox_head=[dict(num_classes=3)] * 2, semantic_head=dict(num_classes=183)),
    )
    assert num_classes_of(model) == 3
    assert num_classes_of(dict(model, backbone=dict(num_classes=7))) == 7
    built = build_model(detector())
    built.backbone.num_classes = 7
    assert num_classes_of(built) == 7
    assert num_classes_of(built, skip=built.backbone) == 3


def test_a_model_of_no_known_task():
    """Its modules learn from its own head, its data are its own affair, and it is told so."""
    cfg = detector()
    cfg.model = dict(type='Own', backbone=cfg.model.backbone, own_head=dict(type='OwnHead'))
    assert task_of(cfg).name == task_of(Config()).name == 'other'
    assert localize(cfg).model.backbone.auxiliary == dict(type='SLM')
    with pytest.raises(LocalLearningError, match='Own is none that tells its num_classes'):
        localize(cfg, auxiliary='light')


def test_a_users_own_task(tasks_of_a_user, tmp_path):
    """One class is all that it takes; of two tasks that describe a config, the nearer counts."""
    asked = []

    @register_task
    class OneStage(Task):
        name, models, heads = 'one stage', ('RetinaNet',), ('own',)
        known_costs = dict(own='5 mAP')

        def describes(self, cfg):
            return 'RetinaNet' in cfg.model.type

        def default_auxiliary(self, model):
            return 'own'

        def check_dataset(self, dataset, kind, where, model):
            asked.append((where, model.type))

        def check_classes(self, dataset, kind, where, model):
            raise LocalLearningError(f'{where}: {num_classes_of(model)} classes')

    cfg = detector()
    cfg.train_dataloader = dict(dataset=dict(type='CocoDataset', data_root=str(tmp_path)))
    model = build_model(cfg)
    assert task_of(cfg).name == task_of_model(model).name == 'one stage'
    head = localize(cfg, slices=False).model.backbone.auxiliary.head
    assert head.bbox_head == cfg.model.bbox_head and 'backbone' not in head
    check_data(cfg, 'train')
    assert asked == [('train_dataloader.dataset', cfg.model.type)]
    with pytest.raises(LocalLearningError, match='train_dataloader.dataset: 3 classes'):
        check_classes(cfg, model, 'train')
    ways = [way for way in ways_to_train(cfg) if isinstance(way, Series) and not way.exact]
    assert {way.make('blocks').accuracy for way in ways} == {'5 mAP'}
    with pytest.raises(LocalLearningError, match='no synthetic batch for a RetinaNet'):
        synthetic_batch(model, (1, 3, 32, 32))
    # Another detector is none of its business.
    cfg.model.type = 'mmdet.FCOS'
    assert task_of(cfg).name == 'detection'


def test_synthetic_batches_name_the_tasks_that_there_are():
    with pytest.raises(LocalLearningError, match='of a detector of mmdet.*of a segmentor of mmseg'):
        synthetic_batch(nn.Identity(), (1, 3, 32, 32))
