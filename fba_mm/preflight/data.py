"""Faults of a config's data sets, found without building them."""

import inspect
import os
from typing import Iterator, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..datasets.source import joined, source_of
from ..errors import LocalLearningError
from ..tasks import task_of
from .building import config_scope, readable_errors, registered


def check_data(cfg: Config, *splits: str) -> None:
    """Refuse a config whose data isn't there; fetch what it asks to download.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are skipped.

    Raises:
        LocalLearningError: Names the path that is missing, or why it can't be fetched.
    """
    task = task_of(cfg)
    for dataset, where in datasets_of(cfg, splits):
        root = str(dataset.get('data_root') or '')
        if dataset.get('backend_args') or _check_folders(dataset, where, cfg) or '://' in root:
            continue
        with readable_errors(
            f'{where} cannot be read', 'check data_root, ann_file and the files'
        ), config_scope(cfg):
            task.check_dataset(dataset, dataset_class(dataset, cfg), where, cfg.get('model'))


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


def _check_folders(dataset: dict, where: str, cfg: Config) -> bool:
    """Refuse folders and files that aren't there. Whether all files are known, and were checked."""
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
        return True
    paths = [('data_root', root)]
    if isinstance(dataset.get('ann_file'), str):
        paths.append(('ann_file', joined(root, dataset['ann_file'])))
    prefixes = dataset.get('data_prefix')
    for prefix in (prefixes or {}).values() if isinstance(prefixes, dict) else [prefixes]:
        if isinstance(prefix, str):
            paths.append(('data_prefix', joined(root, prefix)))
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
    return False


def _fetches_unasked(kind: Optional[type]) -> bool:
    """Whether a data set downloads what isn't there unless it is told not to, as MNIST does."""
    # Of those that come as one archive it is known what is to be there.
    if kind is None or hasattr(kind, 'tgz_md5'):
        return False
    download = inspect.signature(kind.__init__).parameters.get('download')
    return download is not None and download.default is True


def _is_closed_json(path: str) -> bool:
    """Whether the file starts and ends as JSON does; reading a large one twice would take long."""
    with open(path, 'rb') as file:
        start = file.read(100).lstrip()[:1]
        file.seek(max(os.path.getsize(path) - 100, 0))
        return start + file.read().rstrip()[-1:] in (b'{}', b'[]')
