"""Data that is missing or cut off."""

import json

import pytest
from mmengine.config import Config

from fba_mm import LocalLearningError
from fba_mm.preflight.data import check_data


@pytest.fixture()
def coco(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text(json.dumps(dict(images=[])))
    return dict(data_root=f'{tmp_path}/', ann_file='a.json', data_prefix=dict(img='images/'))


def _data(dataset):
    return Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None))


@pytest.mark.parametrize(
    'around',
    [
        lambda d: d,
        lambda d: dict(type='RepeatDataset', dataset=d),
        lambda d: dict(type='ConcatDataset', datasets=[d, d]),
        lambda d: dict(type='ClassBalancedDataset', dataset=dict(type='RepeatDataset', dataset=d)),
    ],
)
@pytest.mark.parametrize(
    'key, value, words',
    [
        ('data_root', '/nowhere/', 'data_root: /nowhere/ does not exist'),
        ('ann_file', 'b.json', 'ann_file: .*b.json does not exist'),
        ('data_prefix', dict(img='pictures/'), 'data_prefix: .*pictures/ does not exist'),
        ('data_prefix', dict(img='images/', seg='seg/'), 'data_prefix: .*seg/ does not exist'),
    ],
)
def test_data_that_is_missing(around, key, value, words, coco):
    check_data(_data(around(coco)), 'train', 'val', 'test')
    with pytest.raises(LocalLearningError, match=words):
        check_data(_data(around(dict(coco, **{key: value}))), 'train', 'val', 'test')


@pytest.mark.parametrize(
    'elsewhere',
    [
        dict(backend_args=dict(backend='petrel')),
        dict(data_root='s3://bucket/'),
    ],
)
def test_data_that_is_not_on_this_machine(elsewhere, coco):
    check_data(_data(dict(coco, ann_file='b.json', **elsewhere)), 'train')


@pytest.mark.parametrize('content', ['', ' ', '{', '{"images": [{"id": 1},', '[1, 2', '}{'])
def test_annotations_that_are_cut_off(content, coco, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(LocalLearningError, match='a.json is empty or cut off'):
        check_data(_data(coco), 'train')


@pytest.mark.parametrize('content', ['{"a": 1}\n', '  [1]  ', '{}'])
def test_annotations_that_are_whole(content, coco, tmp_path):
    (tmp_path / 'a.json').write_text(content)
    check_data(_data(coco), 'train')
