import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fba_mm.datasets.classification import HandwrittenDigits
from fba_mm.errors import LocalLearningError

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.fixture(scope='module')
def splits():
    return {split: HandwrittenDigits(split) for split in ('train', 'test')}


def _items(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.slow
def test_samples_and_labels(splits):
    digits = load_digits()
    for dataset in splits.values():
        for item in _items(dataset):
            index = item['digit_index']
            assert item['gt_label'] == digits.target[index]
            assert item['img'].shape == (32, 32, 3) and item['img'].dtype == np.uint8
            assert (item['img'] == item['img'][..., :1]).all()
            # Made small again, it is the sample.
            small = np.asarray(Image.fromarray(item['img'][..., 0]).resize((8, 8), Image.BOX))
            assert np.corrcoef(small.ravel(), digits.images[index].ravel())[0, 1] > 0.97


@pytest.mark.slow
def test_no_sample_and_no_form_is_in_both_splits(splits):
    train, test = (
        [item['digit_index'] for item in _items(splits[split])] for split in ('train', 'test')
    )
    assert sorted(train + test) == list(range(1797))
    # Every form starts with 0123456789 three times.
    assert load_digits().target[min(test) :][:30].tolist() == list(range(10)) * 3
    assert max(train) < min(test)
    seen = {item['img'].tobytes() for item in _items(splits['train'])}
    assert not seen & {item['img'].tobytes() for item in _items(splits['test'])}


def test_forms(splits):
    """Each begins with 0123456789, but for one label."""
    items = [item for split in ('train', 'test') for item in _items(splits[split])]
    labels = load_digits().target
    starts = {}
    for item in items:
        starts.setdefault(item['form'], item['digit_index'])
    assert sorted(starts) == list(range(14))
    assert [item['form'] for item in items] == sorted(item['form'] for item in items)
    for start in starts.values():
        assert (labels[start : start + 10] == np.arange(10)).sum() >= 9
    lengths = np.diff([*starts.values(), len(labels)])
    assert lengths.min() >= 118 and lengths.max() <= 130


def test_classes_are_balanced(splits):
    for split, least, greatest in (('train', 139, 144), ('test', 35, 39)):
        counts = np.bincount(splits[split].get_gt_labels(), minlength=10)
        assert (counts.min(), counts.max()) == (least, greatest)


def test_deterministic(splits):
    again = _items(HandwrittenDigits('test'))
    assert all(np.array_equal(a['img'], b['img']) for a, b in zip(again, _items(splits['test'])))


def test_options():
    pipeline = [dict(type='PackInputs')]
    dataset = HandwrittenDigits('test', image_size=28, indices=5, pipeline=pipeline)
    assert len(dataset) == 5 and dataset[0]['inputs'].shape == (3, 28, 28)
    assert dataset.metainfo['classes'] == tuple('0123456789') and 'test' in repr(dataset)


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(split='val'), "split='val'"),
        (dict(image_size=4), 'image_size=4'),
        (dict(image_size=True), 'image_size=True'),
    ],
)
def test_arguments(kwargs, words):
    with pytest.raises(LocalLearningError, match=words):
        HandwrittenDigits(**kwargs)
