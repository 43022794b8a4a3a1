"""Faults of annotation files in COCO's form, found before training."""

import copy
import json
import logging
from contextlib import nullcontext

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from fba_mm import LocalLearningError
from fba_mm.preflight.building import build_model
from fba_mm.preflight.classes import check_classes
from fba_mm.preflight.data import check_data
from tests.conftest import retinanet

CLASSES = ('cat', 'dog')
GOOD = dict(
    images=[dict(id=i, file_name=f'{"ab"[i % 2]}/{i}.jpg', height=40, width=60) for i in range(4)],
    annotations=[
        dict(
            id=i,
            image_id=i // 2,
            category_id=(3, 7)[i % 2],
            bbox=[1, 2, 20, 30],
            area=600,
            iscrowd=0,
            segmentation=[[1, 2, 21, 2, 21, 32]],
        )
        for i in range(6)
    ],
    categories=[dict(id=3, name='cat'), dict(id=7, name='dog'), dict(id=9, name='owl')],
)


@pytest.fixture()
def check(tmp_path):
    """Looks at a file made of the good one, and at images that are all there."""
    for one in GOOD['images']:
        path = tmp_path / 'images' / one['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def check(spoil=lambda content: None, split='train', **settings):
        content = copy.deepcopy(GOOD)
        content = spoil(content) or content
        (tmp_path / 'a.json').write_text(json.dumps(content))
        dataset = dict(
            dict(
                type='CocoDataset',
                data_root=str(tmp_path),
                ann_file='a.json',
                data_prefix=dict(img='images/'),
                metainfo=dict(classes=CLASSES),
                pipeline=[dict(type='LoadAnnotations', with_bbox=True)],
            ),
            **settings,
        )
        cfg = Config(
            dict(
                default_scope='mmdet',
                model=retinanet(num_modules=None),
                **{f'{split}_dataloader': dict(dataset=dataset)},
            )
        )
        check_data(cfg, 'train', 'val', 'test')
        return cfg

    return check


def put(content, where, **values):
    content[where][1].update(values)


def drop(content, where, key):
    del content[where][1][key]


FAULTS = {
    'a list': (lambda c: [c], 'has no list of images and of categories and of annotations: give a'),
    'no categories': (lambda c: c.pop('categories') and c, 'has no list of categories: give a'),
    'no images': (lambda c: c['images'].clear(), 'lists no image: check that it is the right file'),
    'a category twice': (
        lambda c: put(c, 'categories', name='cat'),
        "of its categories, 2 have name='cat': fix the file",
    ),
    'an image without a size': (
        lambda c: drop(c, 'images', 'width'),
        'of its images, number 2 has no width: fix',
    ),
    'an image twice': (lambda c: put(c, 'images', id=0), 'of its images, 2 have id=0: fix'),
    'no box': (lambda c: drop(c, 'annotations', 'bbox'), 'its annotations, number 2 has no bbox'),
    'no area': (
        lambda c: [one.pop('area') for one in c['annotations']] and None,
        r'of its annotations, number 1 has no area \(5 more have faults\): fix',
    ),
    'half a box': (
        lambda c: put(c, 'annotations', bbox=[1, 2]),
        r'number 2 \(id 1\) has bbox=\[1, 2\], which is not four numbers',
    ),
    'a box of text': (lambda c: put(c, 'annotations', bbox=[1, 2, '3', 4]), 'not four numbers'),
    'another category': (
        lambda c: put(c, 'annotations', category_id=4),
        'number 2 .* has category_id=4, which is no category: fix',
    ),
    'an id twice': (lambda c: put(c, 'annotations', id=0), 'of its annotations, 2 have id=0'),
    'an image that is gone': (
        lambda c: put(c, 'images', file_name='b/9.jpg'),
        r'lists 1 of 4 images that do not exist, .*images/b/9.jpg: put',
    ),
    'capitals': (
        lambda c: put(c, 'images', file_name='b/1.JPG'),
        r'such as .*images/b/1.JPG \(there is 1.jpg\): put',
    ),
    'another folder': (
        lambda c: put(c, 'images', file_name='c/1.jpg'),
        'such as .*images/c/1.jpg: ',
    ),
}


@pytest.mark.parametrize('spoil, words', FAULTS.values(), ids=FAULTS)
def test_faults_of_the_file(spoil, words, check):
    check()
    with pytest.raises(LocalLearningError, match=f'^train_dataloader.dataset.ann_file: .*{words}'):
        check(spoil)


@pytest.mark.parametrize(
    'settings, words',
    [
        (
            dict(metainfo=dict(classes=('cat', 'dgo'))),
            r"metainfo.classes has 'dgo', and .*'owl'\), 'dog' may be meant: name classes as",
        ),
        (dict(metainfo=dict(classes=('Cat', 'horse'))), r"has 'Cat' \(1 more are missing\)"),
        (
            dict(metainfo=None),
            r"has no category 'person' and .* 80 classes that CocoDataset has of "
            r"its own: name those of the data as metainfo=dict\(classes=\('cat', 'dog', 'owl'\)\)",
        ),
        (
            dict(metainfo=dict(classes='cat')),
            r"a single class is written with a comma, \('cat', \)",
        ),
        (
            dict(data_prefix=dict(img_path='images/')),
            r'data_prefix has no img: set data_prefix=dict\(img',
        ),
        (
            dict(pipeline=[dict(type='LoadAnnotations', with_mask=True)]),
            'no segmentation, and the pipe',
        ),
        (dict(filter_cfg=dict(min_size=50)), r"has no image with an object of .*\('cat', 'dog'\)"),
    ],
    ids=['mistyped', 'two', 'of COCO', 'one word', 'prefix', 'masks', 'too small'],
)
def test_faults_of_the_config(settings, words, check):
    with pytest.raises(LocalLearningError, match=f'^train_dataloader.dataset.*{words}'):
        check(lambda c: put(c, 'annotations', segmentation=[]), **settings)


def test_what_is_not_read_need_not_be_there(check):
    """Images that mmdet filters out, and the objects of a test without them."""

    def gone(content):
        put(content, 'annotations', image_id=0)
        content['images'][3]['file_name'] = 'gone.jpg'

    check(gone, filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(LocalLearningError, match='^val_dataloader.*1 of 4 .*gone.jpg'):
        check(gone, 'val', test_mode=True, filter_cfg=dict(filter_empty_gt=True))

    def unlabelled(content):
        del content['annotations']

    check(unlabelled, 'test', test_mode=True, pipeline=[])
    with pytest.raises(LocalLearningError, match='^val_dataloader.* no list of annotations'):
        check(unlabelled, 'val', test_mode=True)
    check(lambda content: [content], backend_args=dict(backend='petrel'))


def test_what_is_left_out_is_told(check):
    lines, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    try:
        check()
        owls = "0 objects of 1 categories that are not among the classes are left out: ('owl',)"
        assert len(lines) == 1 and owls in lines[0]
        lines.clear()

        def spoil(content):
            put(content, 'annotations', image_id=77)
            content['annotations'][2].update(bbox=[5, 5, 0, 9])

        check(spoil, metainfo=dict(classes=('owl', 'dog', 'cat')))
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    assert len(lines) == 3
    assert "has no object of ('owl',)" in lines[0]
    assert 'order of the categories' in lines[1] and "('cat', 'dog', 'owl')" in lines[1]
    assert '1 objects of images that it does not list and 1 whose boxes' in lines[2]


@pytest.mark.parametrize('classes, refused', [(3, False), (4, False), (2, True)])
def test_heads_have_no_fewer_classes_than_the_data(classes, refused, check):
    cfg = check(metainfo=dict(classes=('cat', 'dog', 'owl')))
    cfg.model.bbox_head.num_classes = classes
    model = build_model(cfg)
    words = 'names 3 classes, but the head predicts 2: set its num_classes=3'
    with pytest.raises(LocalLearningError, match=words) if refused else nullcontext():
        check_classes(cfg, model, 'train', 'val')
