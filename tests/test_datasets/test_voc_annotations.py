"""Faulty annotation files in PASCAL VOC's form: found, reported by file, refused or skipped."""

import logging
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

import fba_mm.datasets.checked_voc  # noqa: F401
from fba_mm import LocalLearningError
from fba_mm.datasets import voc_annotations
from fba_mm.datasets.voc_annotations import VOCFolder, refuse_or_skip
from fba_mm.preflight.building import build_model
from fba_mm.preflight.classes import check_classes
from fba_mm.preflight.data import check_data
from tests.conftest import retinanet
from tests.voc_folder import annotation, write_voc

CLASSES = ('cat', 'dog', 'owl')


@pytest.fixture()
def root(tmp_path):
    write_voc(tmp_path)
    return tmp_path


@pytest.fixture()
def reported():
    """The lines of the log."""
    lines = []
    with mock.patch.object(voc_annotations, 'print_log', lambda text, *_: lines.append(text)):
        yield lines


def folder_of(root, **settings) -> VOCFolder:
    return VOCFolder(
        **dict(
            dict(ann_file=str(root / 'ImageSets/Main/train.txt'), root=str(root), classes=CLASSES),
            **settings,
        )
    )


def config(root, **settings) -> Config:
    """A config with the folder to train on."""
    model = retinanet(num_modules=None)
    dataset = dict(
        type='CheckedVOCDataset',
        data_root=str(root),
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            train_dataloader=dict(dataset=dict(dataset, **settings)),
        )
    )


def dataset_of(root, **settings):
    return DATASETS.build(
        dict(config(root, **settings).train_dataloader.dataset, serialize_data=False)
    )


def test_a_good_folder(root, reported):
    assert folder_of(root).faults() == {} and refuse_or_skip(folder_of(root), 'refuse', '') == ()
    cfg = config(root)
    check_data(cfg, 'train')
    check_classes(cfg, build_model(cfg), 'train')
    assert not reported
    dataset = dataset_of(root)
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == list('abcd')
    # mmdet takes an empty line for a name.
    (root / 'ImageSets/Main/train.txt').write_text('a\nb\nc\nd')
    stock = DATASETS.build(
        dict(config(root).train_dataloader.dataset, type='mmdet.VOCDataset', filter_cfg=None)
    )
    assert [stock.get_data_info(i) for i in range(4)] == [
        dataset.get_data_info(i) for i in range(4)
    ]


def _write(text):
    return lambda root: (root / 'Annotations/b.xml').write_text(text)


BOX = (1, 1, 9, 9)
# What spoils image b, and what is said of it.
FAULTS = {
    'missing': (lambda root: (root / 'Annotations/b.xml').unlink(), 'the file is missing'),
    'empty': (_write(''), 'the file is empty'),
    'cut off': (_write(annotation([('cat', BOX)])[:-20]), 'it is no XML'),
    'no image': (lambda root: (root / 'JPEGImages/b.jpg').unlink(), 'JPEGImages/b.jpg is missing'),
    'size of 0': (
        _write(annotation([('cat', BOX)], '<size><width>0</width><height>9</height></size>')),
        'no image size in whole positive numbers',
    ),
    'half a size': (
        _write(annotation([('cat', BOX)], '<size><width>9</width></size>')),
        'no image size',
    ),
    'unknown class': (
        _write(annotation([('cat', BOX), ('cow', BOX)])),
        r'object 2 \(cow\) is of none of the 3 known classes',
    ),
    'class with spaces': (_write(annotation([(' cat', BOX)])), r'object 1 \(cat\) is of none'),
    'no class': (_write(annotation([('', BOX)])), r'object 1 \(without a name\) is of none'),
    'no width': (
        _write(annotation([('dog', (5, 5, 5, 9))])),
        r'object 1 \(dog\) has a box without an area, \[5, 5, 5, 9\]',
    ),
    'corners the other way': (_write(annotation([('dog', (5, 9, 20, 5))])), 'without an area'),
    'beyond the right': (
        _write(annotation([('dog', (5, 5, 65, 9))])),
        r'leaves the image of 64×48, \[5, 5, 65, 9\]',
    ),
    'beyond the top': (_write(annotation([('dog', (5, -1, 20, 9))])), 'leaves the image'),
    'all outside': (_write(annotation([('dog', (70, 5, 90, 9))])), 'leaves the image'),
    'beyond an image that alone has a size': (
        _write(annotation([('dog', (5, 5, 65, 9))], '<depth/>')),
        'leaves the image of 64×48',
    ),
    'no number': (
        _write(annotation([('dog', (5, 'x', 20, ''))])),
        r'object 1 \(dog\) has no number as ymin, ymax',
    ),
    'not finite': (_write(annotation([('dog', (5, 5, 'inf', 9))])), 'no number as xmax'),
    'no box': (
        _write('<annotation><object><name>cat</name></object></annotation>'),
        'no number as xmin, ymin, xmax, ymax',
    ),
    'an encoding that the parser does not know': (
        _write('<?xml version="1.0" encoding="gb2312"?><annotation></annotation>'),
        'it is no XML',
    ),
    'difficult in words': (
        _write(annotation([('cat', BOX)], difficult='yes')),
        "difficult='yes', which is neither 0 nor 1",
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('kind', ['CheckedVOCDataset', 'mmdet.VOCDataset'])
def test_faults_are_refused_before_training(kind, fault, root, reported):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(LocalLearningError, match=message) as caught:
        check_data(config(root, type=kind), 'train')
    text = str(caught.value)
    assert '\n' not in text and "on_fault='skip'" in text and '1 of 4 images' in text
    assert 'train_dataloader.dataset' in text and 'b.xml' in text
    assert len(reported) == 1 and 'b.xml' in reported[0]


@pytest.mark.parametrize('fault', FAULTS)
def test_faulty_files_are_skipped_if_asked(fault, root, reported):
    FAULTS[fault][0](root)
    check_data(config(root, on_fault='skip'), 'train')
    assert 'b.xml' in reported[0] and '1 of 4 images' in reported[-1] and 'left out' in reported[-1]
    dataset = dataset_of(root, on_fault='skip')
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == list('acd')
    with pytest.raises(LocalLearningError, match='1 of 4 images'):
        dataset_of(root)


@pytest.mark.parametrize(
    'settings, fix',
    [
        (dict(metainfo=dict(classes='cat')), r"with a comma, \('cat', \)"),
        (dict(ann_file=''), "ann_file='' is no file: give the text file"),
        (dict(ann_file='ImageSets'), "ann_file='ImageSets' is no file"),
    ],
)
def test_settings_that_name_no_file(settings, fix, root):
    with pytest.raises(LocalLearningError, match=fix):
        check_data(config(root, **settings), 'train')


def test_a_data_set_that_lists_its_files_in_another_way(root):
    """WIDER FACE has folders of its own, and annotation files like VOC's."""
    (root / 'JPEGImages').rename(root / 'elsewhere')
    check_data(config(root, type='mmdet.WIDERFaceDataset'), 'train')


def test_every_file_is_reported(root, reported):
    (root / 'Annotations/a.xml').unlink()
    (root / 'Annotations/d.xml').write_text(
        annotation([('cow', (5, 5, 5, 9)), ('cat', (1, 1, 99, 9))])
    )
    assert list(refuse_or_skip(folder_of(root), 'skip', 'here')) == ['a', 'd']
    assert [line.split(':')[0][-5:] for line in reported[:2]] == ['a.xml', 'd.xml']
    # All that is wrong with a file, not only the first.
    assert reported[1].count(';') == 2


def test_classes_that_are_left_out_on_purpose(root):
    """Training on some of the classes is a choice that the config states."""
    some = dict(metainfo=dict(classes=('cat',)))
    with pytest.raises(LocalLearningError, match=r'2 of 4 images.*\(dog\) is of none of the 1'):
        check_data(config(root, **some), 'train')
    with pytest.raises(
        LocalLearningError, match=r"CheckedVOCDataset', leave_out=\['dog'\], or leave"
    ):
        check_data(config(root, type='mmdet.VOCDataset', **some), 'train')
    check_data(config(root, leave_out=('dog',), **some), 'train')
    dataset = dataset_of(root, leave_out=('dog',), **some)
    assert [len(dataset.get_data_info(i)['instances']) for i in range(4)] == [1, 1, 0, 1]


def test_what_the_filter_leaves_out_is_said(root):
    (root / 'Annotations/c.xml').write_text(annotation([]))
    with mock.patch('fba_mm.datasets.checked_voc.print_log') as log:
        dataset = dataset_of(root, filter_cfg=dict(filter_empty_gt=True, min_size=32))
        assert len(dataset) == 3
    (text,) = (call.args[0] for call in log.call_args_list)
    assert '1 of 4 images' in text and text.endswith(': c')
    with mock.patch('fba_mm.datasets.checked_voc.print_log') as log:
        assert len(dataset_of(root)) == 4 and not log.called


def test_files_of_another_backend_are_left_to_mmdet(root):
    (root / 'ImageSets/Main/train.txt').write_text('a\nb')
    (root / 'Annotations/a.xml').write_text(annotation([('cow', BOX)]))
    with mock.patch('fba_mm.datasets.checked_voc.print_log') as log:
        dataset = dataset_of(root, backend_args=dict(backend='local'))
    assert len(dataset) == 2 and 'are not checked' in log.call_args.args[0]
    check_data(config(root, backend_args=dict(backend='local')), 'train')


def test_nothing_is_left(root):
    for name in 'abcd':
        (root / f'Annotations/{name}.xml').unlink()
    with pytest.raises(LocalLearningError, match='4 of 4 images.*none is left'):
        check_data(config(root, on_fault='skip'), 'train')
    (root / 'ImageSets/Main/train.txt').write_text('\n')
    with pytest.raises(LocalLearningError, match='names no images'):
        check_data(config(root), 'train')


def test_on_fault_in_other_words(root):
    with pytest.raises(LocalLearningError, match="on_fault='ignore': give 'refuse' or 'skip'"):
        check_data(config(root, on_fault='ignore'), 'train')


@pytest.mark.parametrize('classes', [CLASSES[:2], CLASSES + ('cow',)])
@pytest.mark.parametrize('kind', ['CheckedVOCDataset', 'mmdet.VOCDataset'])
def test_classes_that_disagree_with_the_head(kind, classes, root):
    cfg = config(root, type=kind, metainfo=dict(classes=classes))
    message = rf'names {len(classes)} classes, but the head predicts 3.*num_classes={len(classes)}'
    with pytest.raises(LocalLearningError, match=message):
        check_classes(cfg, build_model(cfg), 'train')


def test_folders_inside_other_data_sets(root):
    (root / 'Annotations/a.xml').unlink()
    cfg = config(root)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner])
    )
    with pytest.raises(LocalLearningError, match=r'dataset.dataset.datasets: 1 of'):
        check_data(cfg, 'train')


def test_classes_that_are_nowhere_named(root):
    with pytest.raises(LocalLearningError, match='XMLDataset has no classes.*metainfo=dict'):
        check_data(config(root, type='mmdet.XMLDataset', metainfo=None), 'train')
    names = root / 'classes.txt'
    names.write_text('\n'.join(CLASSES))
    check_data(config(root, type='mmdet.XMLDataset', metainfo=dict(classes=str(names))), 'train')


def test_the_log_is_mmengines(root):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    with mock.patch.object(logger, 'log') as log:
        (root / 'Annotations/a.xml').unlink()
        refuse_or_skip(folder_of(root), 'skip', 'here')
    assert [call.args[0] for call in log.call_args_list] == [logging.WARNING] * 2
