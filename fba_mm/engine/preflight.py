"""What can be found wrong with a config before anything is trained or written."""
import copy
import inspect
import os
import re
from contextlib import contextmanager
from typing import ContextManager, Iterator, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import list_from_file
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import (DATA_SAMPLERS, DATASETS, MODEL_WRAPPERS, MODELS, OPTIM_WRAPPERS,
                               OPTIMIZERS, DefaultScope, Registry)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import type_name
from ..datasets.source import source_of
from ..datasets.voc_annotations import ANNOTATIONS, IMAGES, VOCFolder, refuse_or_skip
from ..errors import LocalLearningError
from ..local import LocalBackbone
from ..local.auxiliary.base import num_classes_of
from .class_count import class_counts, greatest_label
from .fba_hook import check_local_training
from .image_pairs import check_pairs, pairs_of
from .label_maps import check_head_classes, check_label_maps, is_segmentation, labelled
from .local_data_parallel import LocalDataParallel
from .module_parallel import LocalModuleParallel
from .undivided_samplers import UNDIVIDED


@contextmanager
def readable_errors(what: str, mend: str = 'check the config') -> Iterator[None]:
    """Turn what a faulty config makes OpenMMLab raise into one line.

    Args:
        what: What is being done, as in ``'the model cannot be built'``.
        mend: What the user should do about it.

    Raises:
        LocalLearningError: Anything was raised.
    """
    try:
        yield
    except LocalLearningError:
        raise
    except Exception as error:  # The config chooses what code runs here.
        # str() of a KeyError is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        reason = ' '.join(str(message).split()) or 'no reason given'
        unknown = re.match(r'(\S+) is not in the (\S+) registry', reason)
        if unknown:
            raise LocalLearningError(
                f'{what}: nothing is registered as {unknown[1]!r} ({unknown[2]} registry), check '
                'its spelling, or name the module that registers it in custom_imports') from error
        raise LocalLearningError(
            f'{what} ({type(error).__name__}: {reason[:300]}): {mend}') from error


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as the runner will, in the config's scope.

    Args:
        cfg: A complete config.

    Raises:
        LocalLearningError: It can't be built.
    """
    if not (cfg.get('model') or {}).get('type'):
        raise LocalLearningError('the config has no model: give a complete config')
    with readable_errors('the model cannot be built'), _scope(cfg):
        # A copy: some heads write into their config, and can't be built from it again.
        model = copy.deepcopy(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
        return MODELS.build(model)


def _scope(cfg: Config) -> ContextManager:
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')


def _registered(registry: Registry, kind: str, cfg: Config) -> Optional[type]:
    """What a name stands for in a config's scope, or None."""
    with _scope(cfg), registry.switch_scope_and_registry(None) as own:
        return own.get(kind)


def check_training(cfg: Config, model: nn.Module) -> OptimWrapper:
    """Refuse a config that can't be trained.

    Args:
        cfg: The config.
        model: Its model, from :func:`build_model`.

    Returns:
        The config's optimizer wrapper, for this model.

    Raises:
        LocalLearningError: Names the fault and its mend.
    """
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise LocalLearningError(f'the config has no {key}: give a complete training config')
    check_data(cfg, 'train', 'val')
    check_classes(cfg, model, 'train', 'val')
    hooks = {type_name(hook.get('type')): hook for hook in cfg.get('custom_hooks') or []}
    local = [m for m in model.modules() if isinstance(m, LocalBackbone)]
    if 'FBAHook' not in hooks and any(m.num_modules > 1 for m in local):
        raise LocalLearningError(
            'the model has a LocalBackbone, but custom_hooks has no FBAHook to train it: add '
            "custom_hooks = [dict(type='FBAHook')], or inherit configs/_base_/fba.py")
    if 'FBAHook' in hooks:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        wrapper = _registered(OPTIM_WRAPPERS, kind, cfg) if isinstance(kind, str) else kind
        if wrapper is None:
            raise LocalLearningError(
                f"optim_wrapper.type={kind!r} is not registered: set it to 'LocalOptimWrapper'")
        check_local_training(model, wrapper, hooks['FBAHook'].get('scope', 'past'))
    optimizer = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(optimizer, str) and _registered(OPTIMIZERS, optimizer, cfg) is None:
        raise LocalLearningError(
            f'optim_wrapper.optimizer.type={optimizer!r} is not registered: check its spelling, as '
            "in 'SGD' and 'AdamW'")
    with readable_errors('the optimizer wrapper cannot be built'), _scope(cfg):
        return build_optim_wrapper(model, cfg.optim_wrapper)


def choose_model_wrapper(cfg: Config, training: bool = True) -> None:
    """Settle what holds the processes of a distributed job together: the config's choice, or ours.

    Args:
        cfg: The config; its ``model_wrapper_cfg`` is set if there are several processes.
        training: Whether it will be trained; else any wrapper will do.

    Raises:
        LocalLearningError: The config's choice does not reduce the gradients of local losses.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    local = any(type_name(hook.get('type')) == 'FBAHook' for hook in cfg.get('custom_hooks') or [])
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # MMEngine's own choice, but for local learning.
        wrapper = dict(type='LocalDataParallel' if local else 'MMDistributedDataParallel',
                       broadcast_buffers=False)
    kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
    kind = _registered(MODEL_WRAPPERS, kind, cfg) if isinstance(kind, str) else kind
    if kind is None:
        raise LocalLearningError(
            f"model_wrapper_cfg.type={wrapper['type']!r} is not registered: check its spelling, or "
            'leave model_wrapper_cfg out')
    if issubclass(kind, LocalModuleParallel):
        if training:
            _read_all_images(cfg)
        else:  # The whole network is tested, in however many processes.
            wrapper, kind = dict(type='LocalDataParallel'), LocalDataParallel
    elif cfg.get('find_unused_parameters'):
        wrapper.setdefault('find_unused_parameters', True)
    if local and training and not issubclass(kind, (LocalDataParallel, LocalModuleParallel)):
        raise LocalLearningError(
            f'model_wrapper_cfg.type={type_name(wrapper["type"])} would not reduce the gradients '
            "of local losses between processes: set it to 'LocalDataParallel', or leave "
            'model_wrapper_cfg out')
    if get_device() == 'cpu' and issubclass(kind, DistributedDataParallel):
        wrapper.setdefault('device_ids', None)  # MMEngine would give it a GPU.
    cfg.model_wrapper_cfg = wrapper


def _read_all_images(cfg: Config) -> None:
    """Where processes have modules, not images of their own, each goes through all images."""
    sampler = (cfg.get('train_dataloader') or {}).get('sampler')
    if not isinstance(sampler, dict):
        return
    kind = sampler.get('type')
    kind = _registered(DATA_SAMPLERS, kind, cfg) if isinstance(kind, str) else kind
    if kind in UNDIVIDED:
        sampler['type'] = UNDIVIDED[kind].__name__


def use_atomic_checkpoints(cfg: Config) -> None:
    """Let checkpoints be written completely or not at all, where MMEngine's hook writes them.

    Args:
        cfg: The config; the hook for checkpoints is changed.
    """
    hooks = cfg.setdefault('default_hooks', dict())
    if 'checkpoint' in hooks and hooks['checkpoint'] is None:
        return
    hooks.setdefault('checkpoint', dict(interval=1))
    if type_name(hooks['checkpoint'].get('type', 'CheckpointHook')) == 'CheckpointHook':
        hooks['checkpoint']['type'] = 'AtomicCheckpointHook'


def check_data(cfg: Config, *splits: str) -> None:
    """Refuse a config whose data isn't there; fetch what it asks to download.

    Args:
        cfg: The config.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are passed over.

    Raises:
        LocalLearningError: Names the path that is missing, or why it can't be fetched.
    """
    generator = (cfg.get('model') or {}).get('generator')
    for dataset, where in _datasets(cfg, splits):
        _check_dataset(dataset, where, cfg)
        if generator and not dataset.get('backend_args'):
            _check_image_pairs(dataset, where, cfg, generator)
        kind = _dataset_class(dataset, cfg)
        if is_segmentation(kind) and not dataset.get('backend_args'):
            with readable_errors(f'{where} cannot be read'), _scope(cfg):
                data = labelled(dataset, kind)
            if data is not None:
                check_label_maps(dataset, where, data)


def _check_image_pairs(dataset: dict, where: str, cfg: Config, generator: dict) -> None:
    kind = _dataset_class(dataset, cfg)
    with readable_errors(f'{where} cannot be read'), _scope(cfg):
        pairs = pairs_of(dataset, kind)
    if pairs is not None:
        check_pairs(dataset, where, pairs, generator)


def _datasets(cfg: Config, splits: Sequence[str]) -> Iterator[Tuple[dict, str]]:
    """The datasets of dataloaders, without what is wrapped around them, and where they stand."""
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


def _dataset_class(dataset: dict, cfg: Config) -> Optional[type]:
    """The class of a dataset's config, or None if nothing is registered under its name."""
    kind = dataset.get('type')
    return _registered(DATASETS, kind, cfg) if isinstance(kind, str) else kind


def _check_dataset(dataset: dict, where: str, cfg: Config) -> None:
    if dataset.get('backend_args'):
        return  # Not on this machine's file system.
    root = dataset.get('data_root') or ''
    # A data_prefix moves the files away from where they are looked for.
    if root and '://' not in root and not dataset.get('data_prefix'):
        source = source_of(_dataset_class(dataset, cfg), os.path.expanduser(root),
                           dataset.get('split') or 'train')
    else:
        source = None
    if source is not None:
        source.check(f'{where}.', download=bool(dataset.get('download')))
        # Fetched now, where a failure leaves nothing behind; several processes wait for one later.
        if source.missing() and int(os.environ.get('WORLD_SIZE', '1')) == 1:
            with readable_errors(f'{where} cannot be fetched', 'check the network connection, or '
                                 f'put its files into {source.root}'), _scope(cfg):
                DATASETS.build(dict(dataset, pipeline=[]))
        return
    paths = [('data_root', root)]
    if isinstance(dataset.get('ann_file'), str):
        paths.append(('ann_file', _join(root, dataset['ann_file'])))
    prefixes = dataset.get('data_prefix')
    for prefix in (prefixes or {}).values() if isinstance(prefixes, dict) else [prefixes]:
        if isinstance(prefix, str):
            paths.append(('data_prefix', _join(root, prefix)))
    kind = _dataset_class(dataset, cfg)
    fetches = dataset.get('download', _fetches_unasked(kind))
    for key, path in paths:
        if not path or '://' in path:
            continue
        if not os.path.exists(path):
            if fetches:
                continue
            raise LocalLearningError(
                f'{where}.{key}: {path} does not exist: put the data there, or set '
                f'--cfg-options {where}.data_root=PATH')
        if key == 'ann_file' and path.endswith('.json') and not _is_closed_json(path):
            raise LocalLearningError(
                f'{where}.ann_file: {path} is empty or cut off, copy or build it again')
    if _is_voc_folder(kind) and '://' not in root:
        with readable_errors(f'{where} cannot be read', 'check data_root, ann_file and the files'):
            refuse_or_skip(
                _voc_folder(dataset, kind, where), dataset.get('on_fault', 'refuse'), where)


def _fetches_unasked(kind: Optional[type]) -> bool:
    """Whether a data set downloads what isn't there unless it is told not to, as MNIST does."""
    # Of those that come as one archive it is known what is to be there.
    if kind is None or hasattr(kind, 'tgz_md5'):
        return False
    download = inspect.signature(kind.__init__).parameters.get('download')
    return download is not None and download.default is True


def _is_voc_folder(kind: Optional[type]) -> bool:
    # By name: mmdet is not imported for the sake of other tasks. A class that lists its files in a
    # way of its own, as WIDERFaceDataset does, has another layout.
    owner = next((base for base in getattr(kind, '__mro__', ()) if 'load_data_list' in vars(base)),
                 None)
    return getattr(owner, '__name__', '') in ('XMLDataset', 'CheckedVOCDataset')


def _voc_folder(dataset: dict, kind: type, where: str) -> VOCFolder:
    root = dataset.get('data_root') or ''
    prefix = (dataset.get('data_prefix') or {}).get('sub_data_root', '')
    classes = (dataset.get('metainfo') or {}).get('classes') or (kind.METAINFO or {}).get('classes')
    if not classes:
        raise LocalLearningError(
            f'{where}: {kind.__name__} has no classes of its own: name those of the data as '
            'metainfo=dict(classes=(...))')
    ann_file = _join(root, dataset.get('ann_file') or '')
    if not os.path.isfile(ann_file):
        raise LocalLearningError(
            f'{where}.ann_file={dataset.get("ann_file")!r} is no file: give the text file that names '
            'the images, as VOC2007/ImageSets/Main/trainval.txt')
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise LocalLearningError(
                f'{where}.metainfo.classes={classes!r} is no file with names: a single class is '
                f'written with a comma, ({classes!r}, )')
        classes = list_from_file(classes)
    return VOCFolder(
        ann_file, _join(root, prefix) or root, classes,
        dataset.get('leave_out', ()), dataset.get('img_subdir', IMAGES),
        dataset.get('ann_subdir', ANNOTATIONS))


def check_classes(cfg: Config, model: nn.Module, *splits: str) -> None:
    """Refuse a head that is made for another number of classes than the data has.

    Image classifiers and segmentors are asked, and detectors that learn from folders in PASCAL VOC's
    form. With others, heads for more classes than the data has are common.

    Args:
        cfg: The config.
        model: Its model.
        *splits: ``'train'``, ``'val'``, ``'test'``; those that the config lacks are passed over.

    Raises:
        LocalLearningError: Names both numbers and the mend.
    """
    _check_voc_classes(cfg, model, splits)
    for dataset, where in _datasets(cfg, splits):
        kind = _dataset_class(dataset, cfg)
        if is_segmentation(kind):
            check_head_classes(where, list(class_counts(dataset, kind)), model)
    expected = getattr(getattr(model, 'head', None), 'num_classes', None)
    is_classifier = any(kind.__name__ == 'ImageClassifier' for kind in type(model).__mro__)
    if not is_classifier or not isinstance(expected, int):
        return
    for dataset, where in _datasets(cfg, splits):
        for count, what in class_counts(dataset, _dataset_class(dataset, cfg)):
            if count != expected:
                raise LocalLearningError(
                    f'{where}: {what}, but model.head.num_classes={expected}: set that to {count}, '
                    'in the auxiliary networks too, or give other data')
        label = greatest_label(dataset)
        if label is not None and label >= expected:
            raise LocalLearningError(
                f'{where}.ann_file has labels up to {label}, but model.head.num_classes='
                f'{expected}: labels count from 0, mend the file or set num_classes={label + 1}')


def _check_voc_classes(cfg: Config, model: nn.Module, splits: Sequence[str]) -> None:
    for dataset, where in _datasets(cfg, splits):
        kind = _dataset_class(dataset, cfg)
        if not _is_voc_folder(kind):
            continue
        expected = num_classes_of(model, skip=getattr(model, 'backbone', None))
        for count, what in class_counts(dataset, kind):
            if expected is not None and count != expected:
                raise LocalLearningError(
                    f'{where}: {what}, but the head predicts {expected}: set its num_classes='
                    f"{count}, in the auxiliary networks too, or name the head's classes as "
                    'metainfo=dict(classes=(...))')


def _is_closed_json(path: str) -> bool:
    """Whether the file starts and ends as JSON does; reading a large one twice would take long."""
    with open(path, 'rb') as file:
        start = file.read(100).lstrip()[:1]
        file.seek(max(os.path.getsize(path) - 100, 0))
        return start + file.read().rstrip()[-1:] in (b'{}', b'[]')


def _join(root: str, path: str) -> str:
    return path if not path or '://' in path else os.path.join(root, path)
