"""SVHN and STL-10 from tiny files in their publishers' formats."""

import hashlib
import os
import urllib.error

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from fba_mm.datasets.classification import STL10, SVHN
from fba_mm.datasets.source import Source, SourceFile, source_of
from fba_mm.errors import LocalLearningError

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')

RNG = np.random.default_rng(0)
PACK = [dict(type='PackInputs')]


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture()
def svhn(tmp_path, monkeypatch):
    """Files of SVHN with 12 images: the folder, and the images and labels of each split."""
    truth, lists = {}, {}
    for split in ('train', 'test', 'extra'):
        images = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        labels = np.array([10, *range(1, 10), 10, 3], dtype=np.uint8)
        path = tmp_path / f'{split}_32x32.mat'
        savemat(path, dict(X=images.transpose(1, 2, 3, 0), y=labels[:, None]))
        truth[split] = images, labels % 10
        lists[split] = [f'http://nowhere.invalid/{path.name}', path.name, _md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, 'split_list', lists)
    return tmp_path, truth


@pytest.fixture()
def stl10(tmp_path, monkeypatch):
    """Files of STL-10 with 10 images, without the unlabelled ones."""
    truth, folder = {}, tmp_path / 'stl10_binary'
    folder.mkdir()
    for split in ('train', 'test'):
        images = RNG.integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
        labels = RNG.permutation(10).astype(np.uint8)
        # Column by column, and classes from 1.
        (folder / f'{split}_X.bin').write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f'{split}_y.bin').write_bytes((labels + 1).tobytes())
        truth[split] = images, labels
    for name, files in (
        ('train_list', ['train_X.bin', 'train_y.bin']),
        ('test_list', ['test_X.bin', 'test_y.bin']),
    ):
        files = [[file, _md5(folder / file)] for file in files]
        if name == 'train_list':
            files.append(['unlabeled_X.bin', '0' * 32])
        monkeypatch.setattr(torchvision.datasets.STL10, name, files)
    return tmp_path, truth


def _assert_holds(dataset, images, labels):
    assert len(dataset) == len(images)
    for i, item in enumerate(dataset):
        info = dataset.get_data_info(i)
        assert info['img'].dtype == np.uint8 and np.array_equal(info['img'], images[i])
        assert info['gt_label'] == labels[i]
        assert np.array_equal(item['inputs'].numpy(), images[i].transpose(2, 0, 1))
        assert item['data_samples'].gt_label.tolist() == [labels[i]]


@pytest.mark.parametrize('split', ['train', 'test', 'extra'])
def test_svhn(split, svhn):
    root, truth = svhn
    dataset = SVHN(str(root), split, pipeline=PACK)
    _assert_holds(dataset, *truth[split])
    assert dataset.metainfo['classes'] == tuple('0123456789')
    assert split in repr(dataset)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_stl10(split, stl10):
    root, truth = stl10
    dataset = STL10(str(root), split, pipeline=PACK)
    _assert_holds(dataset, *truth[split])
    assert len(dataset.metainfo['classes']) == 10


def test_registered_with_mmpretrain():
    from mmpretrain.registry import DATASETS

    assert DATASETS.get('SVHN') is SVHN and DATASETS.get('STL10') is STL10


def test_own_classes_and_home(svhn, monkeypatch):
    monkeypatch.setenv('HOME', str(svhn[0]))
    dataset = SVHN('~', metainfo=dict(classes=list('abcdefghij')))
    assert dataset.metainfo['classes'] == list('abcdefghij') and len(dataset) == 12


def test_a_split_needs_its_own_files_alone(svhn, stl10):
    for name in ('test_32x32.mat', 'extra_32x32.mat', 'stl10_binary/test_X.bin'):
        os.remove(svhn[0] / name)
    assert len(SVHN(str(svhn[0]))) == 12 and len(STL10(str(stl10[0]))) == 10


def test_missing(svhn, stl10):
    root = svhn[0] / 'empty'
    with pytest.raises(LocalLearningError) as info:
        SVHN(f'{root}/')
    assert str(info.value) == (
        f'data not found in {root}: set download=True to fetch it, or put train_32x32.mat there'
    )
    os.remove(stl10[0] / 'stl10_binary/train_y.bin')
    with pytest.raises(LocalLearningError, match='put stl10_binary/train_y.bin there$'):
        STL10(str(stl10[0]))
    assert not root.exists()


@pytest.mark.parametrize('download', [False, True])
def test_incomplete_file_is_named_and_left(download, svhn, monkeypatch):
    path = svhn[0] / 'train_32x32.mat'
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    monkeypatch.setattr('torchvision.datasets.utils.download_url', None)
    with pytest.raises(LocalLearningError, match='train_32x32.mat is incomplete or') as info:
        SVHN(str(svhn[0]), download=download)
    assert 'delete it and set download=True' in str(info.value) and '\n' not in str(info.value)
    assert path.read_bytes() == before
    assert len(SVHN(str(svhn[0]), 'test')) == 12


@pytest.mark.parametrize('download', [False, True])
def test_incomplete_archive(download, stl10, monkeypatch):
    monkeypatch.setattr('torchvision.datasets.utils.download_and_extract_archive', None)
    archive = stl10[0] / torchvision.datasets.STL10.filename
    archive.write_bytes(b'half of it')
    # Of no interest while what was in it is there.
    assert len(STL10(str(stl10[0]), download=download)) == 10
    os.remove(stl10[0] / 'stl10_binary/train_X.bin')
    with pytest.raises(LocalLearningError, match=f'{archive.name} is incomplete or damaged'):
        STL10(str(stl10[0]), download=download)
    assert archive.read_bytes() == b'half of it'


def test_nothing_is_fetched_unless_asked_or_needed(svhn, stl10, monkeypatch):
    for name in ('download_url', 'download_and_extract_archive'):
        monkeypatch.setattr(f'torchvision.datasets.utils.{name}', None)
    for download in (False, True):
        assert SVHN(str(svhn[0]), download=download) and STL10(str(stl10[0]), download=download)
    with pytest.raises(LocalLearningError):
        SVHN(str(svhn[0] / 'elsewhere'))


def test_download(svhn, stl10, monkeypatch, tmp_path):
    stored = (svhn[0] / 'train_32x32.mat').read_bytes()
    asked = []

    def fetch(url, root, name, md5):
        asked.append((url, name, md5))
        os.makedirs(root, exist_ok=True)
        with open(os.path.join(root, name), 'wb') as file:
            file.write(stored)

    monkeypatch.setattr('torchvision.datasets.utils.download_url', fetch)
    assert len(SVHN(str(tmp_path / 'new'), download=True)) == 12
    assert asked == [tuple(torchvision.datasets.SVHN.split_list['train'])]

    def unpack(url, root, filename, md5):
        os.rename(stl10[0] / 'stl10_binary', os.path.join(root, 'stl10_binary'))

    monkeypatch.setattr('torchvision.datasets.utils.download_and_extract_archive', unpack)
    assert len(STL10(str(tmp_path / 'new'), download=True)) == 10


@pytest.mark.parametrize(
    'raised',
    [
        urllib.error.URLError('no route to host'),
        RuntimeError('File not found or corrupted.'),
        ConnectionResetError('reset by peer'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_offline(raised, svhn, monkeypatch, tmp_path):
    def fail(*args):
        raise raised

    monkeypatch.setattr('torchvision.datasets.utils.download_url', fail)
    with pytest.raises(LocalLearningError, match='fetching it failed') as info:
        SVHN(str(tmp_path / 'new'), download=True)
    text = str(info.value)
    assert '\n' not in text and 'put train_32x32.mat there' in text and str(raised) in text


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(data_root='x', split='val'), "split='val' does not exist, give one of train, test"),
        (dict(data_root=''), 'give a data_root'),
    ],
)
def test_arguments(kwargs, words):
    for kind in (SVHN, STL10):
        with pytest.raises(LocalLearningError, match=words):
            kind(**kwargs)


def test_published_checksums():
    """As torchvision has them: 32 digits each, and none changed by a test."""
    for kind, split, count in ((SVHN, 'extra', 1), (STL10, 'test', 2)):
        source = kind.source('x', split)
        assert len(source.files) == count and all(len(file.md5) == 32 for file in source.files)


def test_source_of():
    from mmpretrain.datasets import CIFAR10, CustomDataset

    source = source_of(CIFAR10, 'here')
    assert len(source.files) == 6 and source.missing()[5] == 'cifar-10-batches-py/test_batch'
    assert source_of(SVHN, 'here', 'test') == SVHN.source('here', 'test')
    assert source_of(CustomDataset, 'here') is source_of(None, 'here') is None


def test_where_and_many_files(tmp_path):
    source = Source(str(tmp_path), [SourceFile(name, '0' * 32) for name in 'abcd'])
    with pytest.raises(LocalLearningError, match=r'set val\.download=True .* a, b, c, ... there'):
        source.check('val.')
    source.check('val.', download=True)


def test_file_that_is_mended_is_read_again(tmp_path):
    path = tmp_path / 'a'
    source = Source(str(tmp_path), [SourceFile('a', hashlib.md5(b'whole').hexdigest())])
    path.write_bytes(b'who')
    with pytest.raises(LocalLearningError):
        source.check()
    path.write_bytes(b'whole')
    source.check()
