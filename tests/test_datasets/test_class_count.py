"""What configs and folders tell about the number of classes."""

import pytest
from mmpretrain.datasets import CIFAR10, CustomDataset

from fba_mm.datasets.class_count import class_counts, greatest_label


@pytest.fixture()
def folder(tmp_path):
    for name in ('cat', 'dog', 'owl'):
        (tmp_path / 'train' / name).mkdir(parents=True)
    (tmp_path / 'train' / 'notes.txt').write_text('')
    (tmp_path / 'list.txt').write_text('a b.jpg 0\nc.jpg 4\n\nd.jpg 2\n')
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    return str(tmp_path)


def _counts(kind=None, **dataset):
    return [count for count, _ in class_counts(dataset, kind)]


def test_class_counts(folder):
    assert list(class_counts(dict(type='CIFAR10'), CIFAR10)) == [(10, 'CIFAR10 has 10 classes')]
    # The config's come before the class's own.
    assert _counts(CIFAR10, type='CIFAR10', classes=['a', 'b']) == [2]
    assert _counts(CIFAR10, type='CIFAR10', metainfo=dict(classes=('a', 'b', 'c'))) == [3]
    assert _counts(CIFAR10, type='CIFAR10', classes=f'{folder}/classes.txt') == [2]
    assert _counts(type='Unknown') == [] == _counts()


@pytest.mark.parametrize('prefix', ['train', 'train/', dict(img_path='train')])
def test_folders(prefix, folder):
    dataset = dict(type='CustomDataset', data_root=folder, data_prefix=prefix)
    assert _counts(CustomDataset, **dataset) == [3]
    assert _counts(CustomDataset, **dataset, metainfo=dict(classes=['a'] * 4)) == [4, 3]
    assert _counts(CustomDataset, **dataset, with_label=False) == []
    assert _counts(CustomDataset, **dataset, ann_file='list.txt') == []
    assert _counts(CustomDataset, **dict(dataset, data_root=f'{folder}/absent')) == []


def test_greatest_label(folder):
    assert greatest_label(dict(data_root=folder, ann_file='list.txt')) == 4
    assert greatest_label(dict(ann_file=f'{folder}/list.txt')) == 4
    for ann_file in ('', None, 'absent.txt', 'list.json', 'classes.txt'):
        assert greatest_label(dict(data_root=folder, ann_file=ann_file)) is None
