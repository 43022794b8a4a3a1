"""Faults of a config's data sets, found without building them."""

import inspect
import os
from typing import Iterator, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from ..datasets.coco_annotations import COCOFile
from ..datasets.source import source_of
from ..datasets.voc_annotations import ANNOTATIONS, IMAGES, VOCFolder, refuse_or_skip
from ..errors import LocalLearningError
from .building import config_scope, readable_errors, registered
from .image_pairs import check_pairs, pairs_of
from .label_maps import check_label_maps, is_segmentation, labelled


def check_data(cfg: Config, *splits: str) -> None:
    """Refuse a config whose data isn't there; fetch what it asks to download.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are skipped.

    Raises:
        LocalLearningError: Names the path that is missing, or why it can't be fetched.
    """
    generator = (cfg.get('model') or {}).get('generator')
    for dataset, where in datasets_of(cfg, splits):
        _check_dataset(dataset, where, cfg)
        if generator and not dataset.get('backend_args'):
            _check_image_pairs(dataset, where, cfg, generator)
        kind = dataset_class(dataset, cfg)
        if is_segmentation(kind) and not dataset.get('backend_args'):
            with readable_errors(f'{where} cannot be read'), config_scope(cfg):
                data = labelled(dataset, kind)
            if data is not None:
                check_label_maps(dataset, where, data)


def _check_image_pairs(dataset: dict, where: str, cfg: Config, generator: dict) -> None:
    kind = dataset_class(dataset, cfg)
    with readable_errors(f'{where} cannot be read'), config_scope(cfg):
        pairs = pairs_of(dataset, kind)
    if pairs is not None:
        check_pairs(dataset, where, pairs, generator)


def datasets_of(cfg: Config, splits: Sequence[str]) -> Iterator[Tuple[dict, str]]:
    """The datasets of dataloaders, without what is wrapped around them, and where they stand.

    Args:
        cfg: The config.
        splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are skipped.
    """
    for split in splits:
        where = f'{split}_dataloader'
        dataloaders = cfg.get(where)
        # mmagic validates and tests on several data sets, one after the other.
        several = isinstance(dataloaders, (list, tuple))
        for i, dataloader in enumerate(dataloaders if several else [dataloaders]):
            if dataloader is not None:
                place = f'{where}.{i}' if several else where
                yield from _inner_datasets(dataloader.get('dataset'), f'{place}.dataset')


def _inner_datasets(dataset: Optional[dict], where: str) -> Iterator[Tuple[dict, str]]:
    if not isinstance(dataset, dict):
        return
    # RepeatDataset, ConcatDataset, MultiImageMixDataset
    keys = [key for key in ('dataset', 'datasets') if key in dataset]
    if not keys:
        yield dataset, where
    for key in keys:
        inner = dataset[key]
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _inner_datasets(one, f'{where}.{key}')


def dataset_class(dataset: dict, cfg: Config) -> Optional[type]:
    """The class of a dataset's config, or None if nothing is registered under its name.

    Args:
        dataset: The dataset's config.
        cfg: The config that it is a part of.
    """
    kind = dataset.get('type')
    return registered(DATASETS, kind, cfg) if isinstance(kind, str) else kind


def _check_dataset(dataset: dict, where: str, cfg: Config) -> None:
    if dataset.get('backend_args'):
        return  # Not on this machine's file system.
    root = dataset.get('data_root') or ''
    # A data_prefix moves the files away from where they are looked for.
    if root and '://' not in root and not dataset.get('data_prefix'):
        source = source_of(
            dataset_class(dataset, cfg), os.path.expanduser(root), dataset.get('split') or 'train'
        )
    else:
        source = None
    if source is not None:
        source.check(f'{where}.', download=bool(dataset.get('download')))
        # Fetched now, where a failure leaves nothing behind; several processes wait for one later.
        if source.missing() and int(os.environ.get('WORLD_SIZE', '1')) == 1:
            with readable_errors(
                f'{where} cannot be fetched',
                f'check the network connection, or put its files into {source.root}',
            ), config_scope(cfg):
                DATASETS.build(dict(dataset, pipeline=[]))
        return
    paths = [('data_root', root)]
    if isinstance(dataset.get('ann_file'), str):
        paths.append(('ann_file', _join(root, dataset['ann_file'])))
    prefixes = dataset.get('data_prefix')
    for prefix in (prefixes or {}).values() if isinstance(prefixes, dict) else [prefixes]:
        if isinstance(prefix, str):
            paths.append(('data_prefix', _join(root, prefix)))
    kind = dataset_class(dataset, cfg)
    fetches = dataset.get('download', _fetches_unasked(kind))
    for key, path in paths:
        if not path or '://' in path:
            continue
        if not os.path.exists(path):
            if fetches:
                continue
            raise LocalLearningError(
                f'{where}.{key}: {path} does not exist: put the data there, or set '
                f'--cfg-options {where}.data_root=PATH'
            )
        if key == 'ann_file' and path.endswith('.json') and not _is_closed_json(path):
            raise LocalLearningError(
                f'{where}.ann_file: {path} is empty or cut off, copy or build it again'
            )
    if _is_coco_file(kind) and '://' not in root and get_rank() == 0:
        with readable_errors(f'{where} cannot be read', 'check data_root, ann_file and the files'):
            _coco_file(dataset, kind, where).check(where)
    if is_voc_folder(kind) and '://' not in root:
        with readable_errors(f'{where} cannot be read', 'check data_root, ann_file and the files'):
            refuse_or_skip(
                _voc_folder(dataset, kind, where), dataset.get('on_fault', 'refuse'), where
            )


def _fetches_unasked(kind: Optional[type]) -> bool:
    """Whether a data set downloads what isn't there unless it is told not to, as MNIST does."""
    # Of those that come as one archive it is known what is to be there.
    if kind is None or hasattr(kind, 'tgz_md5'):
        return False
    download = inspect.signature(kind.__init__).parameters.get('download')
    return download is not None and download.default is True


def is_voc_folder(kind: Optional[type]) -> bool:
    """Whether a class reads a folder in PASCAL VOC's form.

    Args:
        kind: A data set's class.
    """
    # By name: mmdet is not imported for the sake of other tasks. A class that lists its files in a
    # way of its own, as WIDERFaceDataset does, has another layout.
    owner = next(
        (base for base in getattr(kind, '__mro__', ()) if 'load_data_list' in vars(base)), None
    )
    return getattr(owner, '__name__', '') in ('XMLDataset', 'CheckedVOCDataset')


def _voc_folder(dataset: dict, kind: type, where: str) -> VOCFolder:
    root = dataset.get('data_root') or ''
    prefix = (dataset.get('data_prefix') or {}).get('sub_data_root', '')
    classes = _classes_of(dataset, kind, where)
    ann_file = _join(root, dataset.get('ann_file') or '')
    if not os.path.isfile(ann_file):
        raise LocalLearningError(
            f'{where}.ann_file={dataset.get("ann_file")!r} is no file: give the text file that '
            'names the images, as VOC2007/ImageSets/Main/trainval.txt'
        )
    return VOCFolder(
        ann_file,
        _join(root, prefix) or root,
        classes,
        dataset.get('leave_out', ()),
        dataset.get('img_subdir', IMAGES),
        dataset.get('ann_subdir', ANNOTATIONS),
    )


def _classes_of(dataset: dict, kind: type, where: str) -> Sequence[str]:
    """Names of a detection data set's classes."""
    classes = (dataset.get('metainfo') or {}).get('classes') or (kind.METAINFO or {}).get('classes')
    if not classes:
        raise LocalLearningError(
            f'{where}: {kind.__name__} has no classes of its own: name those of the data as '
            'metainfo=dict(classes=(...))'
        )
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise LocalLearningError(
                f'{where}.metainfo.classes={classes!r} is no file with names: a single class is '
                f'written with a comma, ({classes!r}, )'
            )
        classes = list_from_file(classes)
    return classes


def _is_coco_file(kind: Optional[type]) -> bool:
    # By name, as above. Panoptic segmentation reads files in another way.
    owners = [
        next((base for base in getattr(kind, '__mro__', ()) if method in vars(base)), None)
        for method in ('load_data_list', 'parse_data_info')
    ]
    return all(getattr(owner, '__name__', '') == 'CocoDataset' for owner in owners)


def _coco_file(dataset: dict, kind: type, where: str) -> COCOFile:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    if 'img' not in prefix:
        raise LocalLearningError(
            f"{where}.data_prefix has no img: set data_prefix=dict(img='FOLDER/'), the folder that "
            'the names of images start from'
        )
    ann_file = _join(root, dataset.get('ann_file') or '')
    if not os.path.isfile(ann_file):
        raise LocalLearningError(
            f'{where}.ann_file={dataset.get("ann_file")!r} is no file: give the JSON file with '
            'images, annotations and categories'
        )
    own = not (dataset.get('metainfo') or {}).get('classes')
    testing = bool(dataset.get('test_mode'))
    filters = {} if testing else dataset.get('filter_cfg') or {}
    # A test may go without objects, an evaluation needs them.
    reads = [
        step
        for step in dataset.get('pipeline') or []
        if step.get('with_bbox') or step.get('with_mask')
    ]
    return COCOFile(
        ann_file,
        _join(root, prefix['img']) or root,
        _classes_of(dataset, kind, where),
        kind.__name__ if own else None,
        not testing or bool(reads),
        any(step.get('with_mask') for step in reads),
        bool(filters.get('filter_empty_gt')),
        filters.get('min_size', 0),
    )


def _is_closed_json(path: str) -> bool:
    """Whether the file starts and ends as JSON does; reading a large one twice would take long."""
    with open(path, 'rb') as file:
        start = file.read(100).lstrip()[:1]
        file.seek(max(os.path.getsize(path) - 100, 0))
        return start + file.read().rstrip()[-1:] in (b'{}', b'[]')


def _join(root: str, path: str) -> str:
    return path if not path or '://' in path else os.path.join(root, path)
