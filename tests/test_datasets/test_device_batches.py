"""Batches from the device: what mmpretrain's pipeline and preprocessor give, but all at once."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmpretrain.datasets import CustomDataset
from mmpretrain.engine.hooks import SwitchRecipeHook
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image

from fba_mm.datasets.classification import HandwrittenDigits
from fba_mm.datasets.device_batches import Augmentation, DeviceBatches
from fba_mm.errors import LocalLearningError
from fba_mm.preflight.building import build_model
from tests.test_analysis.small_configs import classifier

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')

MEAN, STD = [125.3, 123.0, 113.9], [51.6, 50.8, 51.3]
CROP = dict(type='RandomCrop', crop_size=32, padding=4)
REFLECTED = [dict(type='ReflectPad', padding=4), dict(type='RandomCrop', crop_size=32)]
FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')
PACK = dict(type='PackInputs')


def _images(count=20, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def _digits(*pipeline, split='test', **kwargs):
    return HandwrittenDigits(split, pipeline=list(pipeline), **kwargs)


# Augmentation


@pytest.mark.parametrize('crop', [[CROP], REFLECTED])
def test_crops_and_mirrors_as_mmpretrain(crop, monkeypatch):
    """Equal to mmpretrain's transforms and preprocessor, bit for bit, wherever they cut."""
    images = _images()
    augmentation = Augmentation(4, 0.5, reflect=crop is REFLECTED)
    corners, mirrored = augmentation.draw(20, np.random.default_rng(0))
    corners[:2] = torch.tensor([[0, 8], [8, 0]])
    ours = augmentation.apply(images, corners, mirrored)

    theirs = []
    for image, corner, mirror in zip(images, corners.tolist(), mirrored.tolist()):
        monkeypatch.setattr('numpy.random.randint', mock.Mock(side_effect=corner))
        pipeline = Compose([*crop, dict(FLIP, prob=float(mirror)), PACK])
        results = dict(img=image.permute(1, 2, 0).numpy(), gt_label=0)
        theirs.append(pipeline(results)['inputs'])
    assert torch.equal(ours, torch.stack(theirs))

    preprocessor = ClsDataPreprocessor(mean=MEAN, std=STD)
    expected = preprocessor(dict(inputs=theirs))['inputs']
    assert torch.equal(preprocessor(dict(inputs=ours))['inputs'], expected)
    batches = DeviceBatches(ours, torch.zeros(20), 20, shuffle=False, mean=MEAN, std=STD)
    assert torch.equal(next(iter(batches))['inputs'], expected)


def test_everything_is_drawn_equally_often():
    corners, mirrored = Augmentation(4, 0.5).draw(81000, np.random.default_rng(0))
    counts = np.bincount((corners[:, 0] * 9 + corners[:, 1]).numpy(), minlength=81)
    # 1,000 each, with a standard deviation of 31.
    assert len(counts) == 81 and abs(counts - 1000).max() < 150
    assert abs(mirrored.float().mean() - 0.5) < 0.01
    assert not Augmentation(4, 0.0).draw(1000, np.random.default_rng(0))[1].any()
    assert Augmentation(4, 1.0).draw(1000, np.random.default_rng(0))[1].all()


def test_nothing_to_do_copies_nothing():
    images = _images()
    drawn = Augmentation().draw(20, np.random.default_rng(0))
    assert Augmentation().apply(images, *drawn) is images
    assert not any(drawn[0].flatten()) and not drawn[1].any()


def test_images_that_are_not_square():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
    out = Augmentation(1, 0.5).apply(
        images, torch.tensor([[1, 1], [1, 1]]), torch.tensor([False, True])
    )
    assert torch.equal(out[0], images[0]) and torch.equal(out[1], images[1].flip(-1))


# Batches


def test_an_epoch_gives_every_image_once():
    batches = DeviceBatches(_images(), torch.arange(20) % 10, 6)
    sizes, labels = [], []
    for data in batches:
        sizes.append(len(data['inputs']))
        for image, sample in zip(data['inputs'], data['data_samples']):
            index = int((batches.images == image).flatten(1).all(1).nonzero())
            assert sample.gt_label.tolist() == [index % 10]
            labels.append(index)
    assert sizes == [6, 6, 6, 2] and len(batches) == 4 and sorted(labels) == list(range(20))
    batches.drop_last = True
    assert [len(data['inputs']) for data in batches] == [6, 6, 6] and len(batches) == 3


def _epoch(batches):
    return torch.cat([data['inputs'] for data in batches])


def test_epochs_differ_and_can_be_repeated():
    kwargs = dict(augmentation=Augmentation(4, 0.5), seed=3)
    batches = DeviceBatches(_images(), torch.zeros(20), 6, **kwargs)
    first, second = _epoch(batches), _epoch(batches)
    assert not torch.equal(first, second)
    resumed = DeviceBatches(_images(), torch.zeros(20), 6, **kwargs)
    for skip in (0, 2):  # Stopped at the end of the epoch before, and within this one.
        resumed.sampler.set_epoch(1)
        resumed.skip = skip
        assert torch.equal(_epoch(resumed), second[skip * 6 :])
    assert not torch.equal(_epoch(DeviceBatches(_images(), torch.zeros(20), 6)), first)


def test_in_order_for_evaluation():
    batches = DeviceBatches(_images(), torch.zeros(20), 6, shuffle=False)
    assert torch.equal(_epoch(batches), _images()) and torch.equal(_epoch(batches), _images())


@pytest.mark.parametrize('joint', [False, True])
def test_a_classifier_learns_the_same_as_from_a_dataloader(joint):
    torch.manual_seed(0)
    model = build_model(classifier('BN'))
    labels = torch.arange(8) % 5
    batches = DeviceBatches(_images(8), labels, 8, shuffle=False, joint_sample=joint)
    data = next(iter(batches))
    assert len(data['data_samples']) == (1 if joint else 8)
    losses = []
    for one in (
        data,
        dict(
            inputs=list(_images(8)),
            data_samples=DeviceBatches(_images(8), labels, 8, shuffle=False)._samples(
                labels, torch.arange(8)
            ),
        ),
    ):
        one = model.data_preprocessor(one, True)
        losses.append(model(**one, mode='loss')['loss'])
    assert torch.equal(*losses) and losses[0] > 0


def test_predictions():
    model = build_model(classifier()).eval()
    data = next(iter(DeviceBatches(_images(8), torch.arange(8) % 5, 8, shuffle=False)))
    with torch.no_grad():
        found = model.test_step(data)
    assert [sample.gt_label.item() for sample in found] == [i % 5 for i in range(8)]
    assert all(sample.pred_score.shape == (5,) and sample.img_shape == (32, 32) for sample in found)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(images=_images().float()), 'torch.float32'),
        (dict(images=_images()[0]), r'\(3, 32, 32\)'),
        (dict(labels=torch.zeros(19)), 'one label per image'),
        (dict(batch_size=0), 'batch_size=0'),
        (dict(images=_images()[:0], labels=torch.zeros(0)), 'at least one'),
        (dict(labels=torch.full((20,), 10), metainfo=dict(classes=range(10))), 'from 10 to 10'),
        (dict(labels=torch.full((20,), -1)), 'from -1'),
        (dict(mean=MEAN), 'both mean and std'),
        (dict(batch_size=21, drop_last=True), 'leaves nothing'),
    ],
)
def test_arguments(kwargs, words):
    kwargs = dict(dict(images=_images(), labels=torch.zeros(20), batch_size=4), **kwargs)
    with pytest.raises(LocalLearningError, match=words) as info:
        DeviceBatches(**kwargs)
    assert '\n' not in str(info.value)


# From a data set


@pytest.mark.parametrize(
    'pipeline, expected',
    [
        ([*REFLECTED, PACK], Augmentation(4, 0.0, True)),
        ([CROP, FLIP, PACK], Augmentation(4, 0.5)),
        ([CROP, PACK], Augmentation(4, 0.0)),
        ([FLIP, CROP, PACK], Augmentation(4, 0.5)),
        ([PACK], Augmentation()),
        ([], Augmentation()),
        ([dict(type='RandomCrop', crop_size=32)], Augmentation()),
    ],
)
def test_takes_augmentation_from_the_pipeline(pipeline, expected):
    batches = DeviceBatches.from_dataset(_digits(*pipeline, indices=10), 4)
    assert batches.augmentation == expected
    assert batches.dataset.metainfo['classes'] == tuple('0123456789')


def test_hooks_switch_the_pipeline():
    """They look behind the loader, and behind every data set that has one inside."""
    batches = DeviceBatches.from_dataset(_digits(CROP, FLIP, PACK, indices=10), 4)
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(dataloader=batches), epoch=1, logger=mock.Mock(), _resume=False
    )
    recipe = dict(action_epoch=2, train_pipeline=[dict(CROP, padding=2), PACK])
    SwitchRecipeHook([recipe]).before_train_epoch(runner)
    assert batches.augmentation == Augmentation(2, 0.0)
    assert batches.dataset.pipeline.transforms[0].padding == 2
    assert len(batches.dataset) == 10 and not hasattr(batches.dataset, 'dataset')
    resize = dict(action_epoch=2, train_pipeline=[dict(type='Resize', scale=16), PACK])
    with pytest.raises(
        LocalLearningError, match='makes its images by .Resize.*EpochBasedTrainLoop'
    ):
        SwitchRecipeHook([resize]).before_train_epoch(runner)


def test_reads_what_the_data_set_holds():
    dataset = _digits(PACK)
    batches = DeviceBatches.from_dataset(dataset, 64, shuffle=False)
    assert torch.equal(_epoch(batches), torch.stack([item['inputs'] for item in dataset]))
    assert batches.labels.tolist() == dataset.get_gt_labels().tolist()


@pytest.mark.parametrize(
    'count, expected',
    [
        (4, [0, 95, 191, 286]),
        (382, range(382)),
        (1000, range(382)),
        (1, [0]),
    ],
)
def test_part_of_a_data_set(count, expected):
    dataset = _digits()
    batches = DeviceBatches.from_dataset(dataset, 64, count, shuffle=False)
    assert batches.labels.tolist() == [dataset.get_data_info(i)['gt_label'] for i in expected]
    with pytest.raises(LocalLearningError, match='max_images=0'):
        DeviceBatches.from_dataset(dataset, 64, 0)


@pytest.fixture()
def folder(tmp_path):
    for i, name in enumerate(('cat', 'dog')):
        (tmp_path / name).mkdir()
        for j in range(3):
            picture = np.full((36, 40, 3), [40 * i, 20 * j, 255], np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f'{j}.png')
    return str(tmp_path)


def _folder(folder, *pipeline):
    return CustomDataset(data_root=folder, pipeline=[dict(type='LoadImageFromFile'), *pipeline])


def test_files_are_loaded_and_resized_once(folder):
    dataset = _folder(folder, dict(type='Resize', scale=(32, 32)), CROP, PACK)
    batches = DeviceBatches.from_dataset(dataset, 6, shuffle=False)
    assert batches.images.shape == (6, 3, 32, 32) and batches.labels.tolist() == [0] * 3 + [1] * 3
    # BGR, as the pipeline has it.
    assert batches.images[5, :, 0, 0].tolist() == [255, 40, 40]


def test_crop_of_another_size(folder):
    with pytest.raises(LocalLearningError, match=r'crop_size=\(32, 32\)\) .* images of \(36, 40\)'):
        DeviceBatches.from_dataset(_folder(folder, CROP, PACK), 6)


def test_images_of_different_sizes(folder):
    Image.new('RGB', (50, 36)).save(f'{folder}/dog/9.png')
    with pytest.raises(LocalLearningError, match=r'image 6 is of \(36, 50, 3\).*of one size'):
        DeviceBatches.from_dataset(_folder(folder, PACK), 6)


@pytest.mark.parametrize(
    'image, words',
    [
        (np.zeros((32, 32), np.uint8), r'image 0 is torch.uint8 of \(32, 32\)'),
        (np.zeros((32, 32, 3), np.float32), 'image 0 is torch.float32 of'),
    ],
)
def test_images_of_another_form(image, words, monkeypatch):
    dataset = _digits(indices=2)
    monkeypatch.setattr(dataset, 'get_data_info', lambda i: dict(img=image, gt_label=0))
    with pytest.raises(LocalLearningError, match=words):
        DeviceBatches.from_dataset(dataset, 2)


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='ColorJitter', brightness=0.1),
        dict(CROP, pad_if_needed=True),
        dict(CROP, padding=(1, 2)),
        dict(CROP, pad_val=7),
        dict(FLIP, direction='vertical'),
        dict(type='RandomResizedCrop', scale=32),
    ],
    ids=lambda transform: transform['type'],
)
def test_transforms_without_a_form_on_the_device(transform):
    with pytest.raises(LocalLearningError, match=f'{transform["type"]}.*no form on the') as e:
        DeviceBatches.from_dataset(_digits(transform, PACK, indices=2), 2)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'pipeline, message',
    [
        (REFLECTED[:1], 'no RandomCrop behind it'),
        ([REFLECTED[0], CROP], 'RandomCrop.*no form on the'),
    ],
)
def test_padding_alone_and_twice(pipeline, message):
    with pytest.raises(LocalLearningError, match=message):
        DeviceBatches.from_dataset(_digits(*pipeline, indices=2), 2)


def test_resizing_after_a_crop_is_refused():
    with pytest.raises(LocalLearningError, match='no form on the device'):
        DeviceBatches.from_dataset(_digits(CROP, dict(type='Resize', scale=(16, 16)), indices=2), 2)
