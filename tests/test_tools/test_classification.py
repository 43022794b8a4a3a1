"""Classification configs through the tools: what trains, and what is refused before that."""

import re

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from .in_process import ROOT, run_tool
from .test_bad_input import assert_refused

CONFIGS = ROOT / 'configs/classification'
# The networks of these configs are another part of the package's.
TINY = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)


@pytest.fixture(scope='session')
def resolved(tmp_path_factory):
    """Configs with a tiny network; call it with a data set and a method."""
    folder, made = tmp_path_factory.mktemp('configs'), {}

    def resolve(dataset, method='bp'):
        path = folder / f'{dataset}_{method}.py'
        if path not in made:
            cfg = Config.fromfile(CONFIGS / dataset / f'resnet32_{method}.py')
            if method == 'bp':
                cfg.model.backbone = TINY
            else:
                cfg.model.backbone.update(backbone=TINY, num_modules=4)
            cfg.dump(path)
            made[path] = True
        return path

    return resolve


@pytest.fixture()
def train(resolved, tmp_path, capsys):
    """Run tools/train.py; call it with a data set, a method and lines that change the config."""

    def run(dataset, text='', method='bp', **kwargs):
        config = tmp_path / 'changed.py'
        config.write_text(f"_base_ = ['{resolved(dataset, method)}']\n{text}\n")
        result = run_tool('train', config, '--work-dir', run.work_dir, capsys=capsys, **kwargs)
        result.work_dir = run.work_dir
        return result

    run.work_dir = tmp_path / 'work'
    return run


@pytest.mark.parametrize(
    'method, loop',
    [
        ('bp', 'EpochBasedTrainLoop'),
        ('bp', 'DeviceEpochLoop'),
        ('fba', 'DeviceEpochLoop'),
    ],
)
def test_digits(method, loop, train):
    hooks = "custom_hooks = [dict(type='FBAHook'), dict(type='LocalAccuracyHook')]\n"
    result = train(
        'digits',
        f"train_cfg = dict(type='{loop}', max_epochs=1)\n"
        'train_dataloader = dict(dataset=dict(indices=128))\n' + hooks * (method == 'fba'),
        method,
    )
    assert result.status == 0, result.err
    found = re.search(r'accuracy/top1: ([\d.]+)', result.out + result.err)
    assert found and 0 <= float(found[1]) <= 100
    for logged in ('local_3.loss', 'local_3/accuracy'):
        assert (logged in result.out + result.err) == (method == 'fba')
    assert (result.work_dir / 'epoch_1.pth').exists()


def test_a_resumed_training_draws_what_it_would_have_drawn(train):
    text = """
train_cfg = dict(type='DeviceEpochLoop', max_epochs=2, val_interval=9)
train_dataloader = dict(dataset=dict(indices=128))
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1))
"""
    weights = []
    for more in ('', "load_from = '{}/epoch_1.pth'\nresume = True"):
        result = train('digits', text + more.format(train.work_dir))
        assert result.status == 0, result.err
        for epoch in (1, 2):
            path = result.work_dir / f'epoch_{epoch}.pth'
            weights.append(torch.load(path, weights_only=False)['state_dict'])
        path.unlink()
    first, last, _, resumed = weights
    assert all(torch.equal(weight, resumed[name]) for name, weight in last.items())
    assert not all(torch.equal(weight, resumed[name]) for name, weight in first.items())


def test_fba_learns_the_same_from_joint_samples(train):
    weights = []
    for joint in (False, True):
        result = train(
            'digits',
            f"train_cfg = dict(type='DeviceEpochLoop', max_epochs=1, "
            f'joint_sample={joint}, max_images=128)',
            'fba',
        )
        assert result.status == 0, result.err
        path = result.work_dir / 'epoch_1.pth'
        weights.append(torch.load(path, weights_only=False)['state_dict'])
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def _assert_refused(result, *words):
    assert_refused(result, *words)
    assert not result.work_dir.exists()


@pytest.mark.parametrize(
    'dataset, file',
    [
        ('svhn', 'put train_32x32.mat there'),
        ('stl10', 'put stl10_binary/train_X.bin, stl10_binary/train_y.bin there'),
        ('cifar10', 'put cifar-10-batches-py/data_batch_1,'),
    ],
)
def test_no_data(dataset, file, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _assert_refused(
        train(dataset),
        f'data not found in data/{dataset}: ',
        file,
        'set train_dataloader.dataset.download=True to fetch it',
    )
    assert not (tmp_path / 'data').exists()


def test_no_folders_of_images(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _assert_refused(train('cifar10_jpeg'), 'data/cifar10_jpeg/ does not exist')


@pytest.mark.parametrize('dataset', ['svhn', 'stl10', 'cifar10'])
def test_offline(dataset, train, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no network here')

    for function in ('download_url', 'download_and_extract_archive'):
        monkeypatch.setattr(f'torchvision.datasets.utils.{function}', fail)
    monkeypatch.setattr('mmpretrain.datasets.cifar.download_and_extract_archive', fail)
    monkeypatch.chdir(tmp_path)
    _assert_refused(
        train(dataset, 'train_dataloader = dict(dataset=dict(download=True))'),
        'no network here',
        'check the network connection',
        f'data/{dataset}',
    )


def test_incomplete_download(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'data/cifar10'
    folder.mkdir(parents=True)
    (folder / 'cifar-10-python.tar.gz').write_bytes(b'half of it')
    for download in (False, True):
        result = train('cifar10', f'train_dataloader = dict(dataset=dict(download={download}))')
        _assert_refused(
            result,
            'data/cifar10/cifar-10-python.tar.gz is incomplete or damaged',
            'delete it and set train_dataloader.dataset.download=True',
        )
    assert (folder / 'cifar-10-python.tar.gz').read_bytes() == b'half of it'


def test_unknown_split(train):
    _assert_refused(
        train('svhn', "train_dataloader = dict(dataset=dict(split='val'))"),
        "split='val' does not exist",
        'train, test, extra',
    )


def test_another_number_of_classes(train):
    _assert_refused(
        train('digits', 'model = dict(head=dict(num_classes=9))'),
        'train_dataloader.dataset: HandwrittenDigits has 10 classes',
        'num_classes=9',
        'set that to 10',
    )


@pytest.fixture()
def pictures(tmp_path):
    """Two images for each of two classes, to train and to test with."""
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            (tmp_path / 'pictures' / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (32, 32), (90 * i, 9, 9)).save(
                    tmp_path / 'pictures' / split / name / f'{i}.jpg'
                )
    return tmp_path / 'pictures'


def _folders(root, classes=2, names=None, **train):
    names = f'metainfo=dict(classes={names or ["cat", "dog"]})'
    common = f"data_root='{root}/', {names}"
    train = ''.join(f', {key}={value!r}' for key, value in train.items())
    return (
        f'model = dict(head=dict(num_classes={classes}))\n'
        f'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, '
        f'dataset=dict({common}{train}))\n'
        f'val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, '
        f'dataset=dict({common}))\n'
        f'test_dataloader = val_dataloader\ntrain_cfg = dict(max_epochs=1)'
    )


def test_folders_of_images(train, pictures):
    result = train('cifar10_jpeg', _folders(pictures))
    assert result.status == 0 and 'accuracy/top1' in result.out + result.err, result.err


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(classes=10), ['its metainfo names 2 classes', 'num_classes=10']),
        (
            dict(classes=3, names=['cat', 'dog', 'owl']),
            ['pictures/train has 2 folders, one per class', 'num_classes=3'],
        ),
    ],
)
def test_folders_and_classes_disagree(kwargs, words, train, pictures):
    _assert_refused(train('cifar10_jpeg', _folders(pictures, **kwargs)), *words)


def test_label_without_a_class(train, pictures):
    (pictures / 'list.txt').write_text('cat/0.jpg 0\ndog/0.jpg 2\n')
    _assert_refused(
        train('cifar10_jpeg', _folders(pictures, ann_file='list.txt')),
        'ann_file has labels up to 2',
        'num_classes=2',
        'num_classes=3',
    )


def test_images_that_do_not_fit_the_device_loop(train, pictures):
    Image.new('RGB', (40, 32)).save(pictures / 'train/dog/9.jpg')
    result = train('cifar10_jpeg', _folders(pictures) + "\ntrain_cfg['type'] = 'DeviceEpochLoop'")
    assert_refused(result, 'image 4 is of (32, 40, 3)', 'of one size')


@pytest.mark.parametrize(
    'text, words',
    [
        ("train_dataloader = dict(sampler=dict(type='InfiniteSampler'))", 'DefaultSampler'),
        (
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='ColorJitter', hue=.1)]))",
            'no form on the device',
        ),
    ],
)
def test_dataloaders_that_do_not_fit_the_device_loop(text, words, train):
    result = train('digits', f"{text}\ntrain_cfg = dict(type='DeviceEpochLoop')")
    assert_refused(result, words)
