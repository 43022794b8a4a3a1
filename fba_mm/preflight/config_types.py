"""Settings of the type that MMEngine takes, from its own signatures."""

import difflib
import inspect
import logging
import math
import types
import typing
from collections import abc
from functools import lru_cache
from pathlib import PurePath
from textwrap import shorten
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import (
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.runner import Runner

from ..errors import LocalLearningError
from .building import registered

# Whose annotations can be relied on. Those of the projects are documentation, and now and then
# narrower than what their classes take.
_ANNOTATED = ('mmengine', 'torch', 'fba_mm')
# Where a config names what MMEngine builds, and what that is if it gives no type.
_BUILT: Dict[str, Tuple[Registry, Optional[str]]] = {
    'optim_wrapper': (OPTIM_WRAPPERS, 'OptimWrapper'),
    'optim_wrapper.optimizer': (OPTIMIZERS, None),
    'param_scheduler': (PARAM_SCHEDULERS, None),
    'train_cfg': (LOOPS, None),
    'val_cfg': (LOOPS, 'ValLoop'),
    'test_cfg': (LOOPS, 'TestLoop'),
    'default_hooks.*': (HOOKS, None),
    'custom_hooks': (HOOKS, None),
    'log_processor': (LOG_PROCESSORS, 'LogProcessor'),
}
# Dicts that no annotation speaks of.
_DICTS = (
    'model',
    'model.backbone',
    'model.generator',
    'env_cfg.dist_cfg',
    'env_cfg.mp_cfg',
    'model_wrapper_cfg',
    'custom_imports',
    'optim_wrapper.optimizer',
    'optim_wrapper.paramwise_cfg',
    'optim_wrapper.paramwise_cfg.custom_keys',
    *(
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in ('dataset', 'sampler', 'batch_sampler', 'collate_fn')
    ),
)
# What MMEngine asks a dict for, and nothing else is looked at there.
_READ = {
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads'),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'optim_wrapper.paramwise_cfg': (
        'custom_keys',
        'norm_decay_mult',
        'bias_lr_mult',
        'bias_decay_mult',
        'dwconv_decay_mult',
        'dcn_offset_lr_mult',
        'flat_decay_mult',
        'bypass_duplicate',
    ),
    'optim_wrapper.paramwise_cfg.custom_keys.*': ('lr_mult', 'decay_mult'),
}
# ``A | B`` has a type of its own before Python 3.14.
_UNIONS = (Union, getattr(types, 'UnionType', Union))
_PLAIN = (str, int, float, bool, type(None))
_WORDS = {
    str: 'a string',
    int: 'an integer',
    float: 'a number',
    bool: 'True or False',
    type(None): 'None',
    dict: 'a dict',
    list: 'a list',
    tuple: 'a list',
    abc.Sequence: 'a list',
}


def check_types(cfg: Config) -> None:
    """Refuse settings of another type than the one that MMEngine's runner and its parts take.

    Args:
        cfg: The config.

    Raises:
        LocalLearningError: Names the setting, its value and the type.

    Example:
        >>> check_types(Config(dict(custom_hooks=dict(type='FBAHook'))))
        LocalLearningError: custom_hooks={'type': 'FBAHook'}: give None or a list
    """
    for name, annotation in _annotations(Runner.__init__).items():
        value = cfg.get(name)
        # Loops of the projects' own validate and test on several data sets.
        several = name.endswith('_dataloader') and isinstance(value, (list, tuple))
        for i, one in enumerate(value if several else [value]):
            # None is taken as missing, whatever is annotated.
            if one is not None:
                _check(f'{name}.{i}' if several else name, one, annotation)
    if cfg.get('default_scope') == '':
        _refuse('default_scope', '', "None or the name of a package, such as 'mmdet'")
    _check_spelling(cfg)
    for place in _DICTS:
        value = _at(cfg, place)
        if isinstance(value, (*_PLAIN, list, tuple)) and value is not None:
            _refuse(place, value, 'a dict')
    kind = _at(cfg, 'model.type')
    if kind is not None and not isinstance(kind, str) and not callable(kind):
        _refuse('model.type', kind, 'the name of a class')
    for split in ('train', 'val', 'test'):
        for where, dataset in _dicts_at(cfg, f'{split}_dataloader.dataset'):
            root = dataset.get('data_root')
            if root is not None and not isinstance(root, (str, PurePath)):
                _refuse(f'{where}.data_root', root, 'a path')
    for place, (registry, default) in _BUILT.items():
        for where, settings in _dicts_at(cfg, place):
            kind = settings.get('type', default)
            if kind is not None and not isinstance(kind, str) and not callable(kind):
                _refuse(f'{where}.type', kind, 'the name of a class')
            _check_settings(where, settings, kind, registry, cfg)


def _check_spelling(cfg: Config) -> None:
    """Refuse a setting that MMEngine knows under a name like it, and would ignore."""
    known = inspect.signature(Runner.__init__).parameters
    others = cfg.keys() - known.keys()
    for name in known:
        near = difflib.get_close_matches(name, others, 1, cutoff=0.9)
        if near and name not in cfg:
            raise LocalLearningError(f'the config has {near[0]}, but no {name}: check its spelling')
        # Some stock configs have such a name, too, and train without what stands there.
        if near and _differ_by_a_letter(name, near[0]):
            print_log(
                f'the config has {near[0]} beside {name}, and nothing reads it: check its spelling',
                'current',
                logging.WARNING,
            )
    for place, keys in _READ.items():
        for where, settings in _dicts_at(cfg, place):
            for key in settings.keys() - keys:
                near = difflib.get_close_matches(str(key), keys, 1, cutoff=0.8)
                if near:
                    raise LocalLearningError(
                        f'{where}.{key} is read by nothing: is {near[0]!r} meant?'
                    )


def _differ_by_a_letter(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _check_settings(where: str, settings: dict, kind: Any, registry: Registry, cfg: Config) -> None:
    kind = registered(registry, kind, cfg) if isinstance(kind, str) and kind else kind
    if not inspect.isclass(kind) or kind.__module__.partition('.')[0] not in _ANNOTATED:
        return
    annotations = _arguments(kind)
    for key, value in settings.items():
        # MMEngine annotates its AmpOptimWrapper's scale as a string, and takes numbers and dicts.
        if key in annotations and key != 'loss_scale':
            _check(f'{where}.{key}', value, annotations[key])


@lru_cache(maxsize=None)
def _arguments(kind: type) -> Dict[str, Any]:
    """What a class annotates its arguments with, those of its bases that it passes on included."""
    found: Dict[str, Any] = {}
    for base in reversed([base for base in kind.__mro__ if '__init__' in vars(base)]):
        found.update(_annotations(vars(base)['__init__']))
    return found


def _annotations(function: Any) -> Dict[str, Any]:
    try:
        found = typing.get_type_hints(function)
    except Exception:  # Names that exist for type checkers alone.
        return {}
    parameters = inspect.signature(function).parameters
    # Of what has no annotation, a default tells the type, as of LogProcessor's window_size.
    told = {
        name: type(parameter.default)
        for name, parameter in parameters.items()
        if type(parameter.default) in (int, float, bool)
    }
    if str(getattr(function, '__module__', '')).startswith('torch.'):
        # Before torch 2.2, SGD has momentum=0 without an annotation, which stands for any number.
        told = {name: float if kind is int else kind for name, kind in told.items()}
        told['lr'] = Union[float, torch.Tensor]
    return {
        name: annotation
        for name, annotation in {**told, **found}.items()
        if name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
    }


def _check(where: str, value: Any, annotation: Any) -> None:
    if _fits(value, annotation):
        if isinstance(value, float) and math.isnan(value):
            _refuse(where, value, 'a number')
        return
    # What is wrong may be one entry of many.
    for kind in _alternatives(annotation):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (list, abc.Sequence) and isinstance(value, (list, tuple)):
            for i, one in enumerate(value):
                _check(f'{where}.{i}', one, arguments[0])
        if origin is dict and isinstance(value, dict):
            for key, one in value.items():
                _check(f'{where}.{key}', one, arguments[1])
    _refuse(where, value, _words(annotation))


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type, or can take its place in a config."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        return any(_fits(value, one) for one in arguments)
    if origin in (list, tuple, abc.Sequence):
        one = arguments[0] if arguments and origin is not tuple else Any
        return isinstance(value, (list, tuple)) and all(_fits(item, one) for item in value)
    if origin is dict:
        return isinstance(value, dict) and (
            len(arguments) < 2 or all(_fits(item, arguments[1]) for item in value.values())
        )
    if annotation is int:
        # 1e5 is a count too.
        return isinstance(value, int) or isinstance(value, float) and value.is_integer()
    if annotation is float:
        return isinstance(value, (int, float))
    if annotation in (tuple, list):
        return isinstance(value, (tuple, list))
    if annotation is Any or not inspect.isclass(annotation):
        return True
    # What is built from a dict may also stand there itself.
    return isinstance(value, annotation) or isinstance(value, dict) and annotation not in _PLAIN


def _alternatives(annotation: Any) -> Tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in _UNIONS
    return typing.get_args(annotation) if is_union else (annotation,)


def _words(annotation: Any) -> str:
    """An annotation as a user would say it: the types that a config file can hold."""
    kinds = []
    for one in _alternatives(annotation):
        kind = typing.get_origin(one) or one
        # A config can't hold a tensor, which optimizers of newer torch take for a learning rate.
        of_dict = inspect.isclass(kind) and kind.__name__ != 'Tensor'
        kind = _WORDS.get(kind, 'a dict' if of_dict else None)
        if kind is not None and kind not in kinds:
            kinds.append(kind)
    return ' or '.join(sorted(kinds)) or 'another type'


def _at(cfg: Any, place: str) -> Any:
    """What stands at a dotted name, or None."""
    for key in place.split('.'):
        cfg = cfg.get(key) if isinstance(cfg, (dict, Config)) else None
    return cfg


def _dicts_at(cfg: Config, place: str) -> Iterator[Tuple[str, dict]]:
    """The dicts at a dotted name, one by one where there are several."""
    parent, _, last = place.rpartition('.')
    found = _at(cfg, parent if last == '*' else place)
    if isinstance(found, dict) and last != '*':
        yield place, found
    elif isinstance(found, dict):
        yield from ((f'{parent}.{key}', one) for key, one in found.items() if isinstance(one, dict))
    elif isinstance(found, (list, tuple)):
        yield from ((f'{place}.{i}', one) for i, one in enumerate(found) if isinstance(one, dict))


def _refuse(where: str, value: Any, expected: str) -> None:
    raise LocalLearningError(f'{where}={shorten(repr(value), 80)}: give {expected}')
