"""State that a network keeps from one pass to the next, and passes that leave it as it was.

Losses count classes (Seesaw, EQL v2), average histograms (GHM) or collect overlaps (Dynamic R-CNN);
heads have queues, counters and averages of features. In stock training such state advances once per
iteration. A head that several modules share runs several times, and only the model's own pass may
count.
"""

from collections import deque
from contextlib import contextmanager
from functools import lru_cache
from operator import is_
from typing import Any, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LocalLearningError

_MODULE, _OBJECT, _DICT, _LIST, _SET, _TUPLE, _TENSOR, _ARRAY = range(1, 9)
# Packages whose objects hold no state of a head: generators, loggers, tokenizers.
_FOREIGN = frozenset(
    (
        'builtins',
        'functools',
        'inspect',
        'logging',
        'mmengine',
        'numpy',
        're',
        'threading',
        'tokenizers',
        'torch',
        'transformers',
        'types',
        'unittest',
        'weakref',
    )
)
# What torch itself keeps in a module. Buffers and submodules are looked at one by one.
INTERNALS = frozenset(vars(nn.Module())) - {'training'}


@contextmanager
def unchanged_state(model: nn.Module, skip: Optional[nn.Module] = None) -> Iterator[List[str]]:
    """Within this context, the model can be run without a trace, but for gradients.

    What the model sees of its own state is as ever; what it changes is put back afterwards:
    buffers, and attributes of modules and of the objects that they hold (assigners, samplers),
    lists, deques, dicts, sets, tensors and arrays in them included. Tensors are replaced by copies
    for the time being, so that neither their values nor what autograd has noted of them is touched.
    Torch's batch normalization uses the batch's statistics, and does not track them. Parameters
    aren't copied.

    Args:
        model: The model, or a part of it.
        skip: A submodule to leave out.

    Yields:
        A list that names what was put back, filled in at the end.

    Raises:
        LocalLearningError: A parameter that isn't trained by gradients, as that of a momentum
            encoder, was changed.
    """
    changed: List[str] = []
    snapshot = Snapshot(model, skip, lend=True)
    try:
        yield changed
    finally:
        changed.extend(snapshot.put_back())
    snapshot.check_parameters()


class Snapshot:
    """What a model and the objects that it holds contain at one moment, as references.

    Args:
        model: The model.
        skip: A submodule to leave out.
        lend: Replace tensors and arrays by copies, until :meth:`put_back`.

    Attributes:
        taken: For each container: the index of its owner in ``owners``, the container, its contents
            as they were (a dict, list or set), its values as they are from now on, and whether
            there are copies among these.
        owners: The model, and the modules, objects and containers found in it: each with the index
            of the one that holds it, and the attribute's name or the item's key there.
    """

    def __init__(self, model: nn.Module, skip: Optional[nn.Module] = None, lend: bool = False):
        self.owners: List[Tuple[Any, int, Any]] = [(model, 0, '')]
        self.taken: List[Tuple[int, Any, Any, list, bool]] = []
        self._lend = lend
        self._lent: List[Tuple[Tensor, int, int, Any]] = []
        self._norms: List[_BatchNorm] = []
        self._untrained: List[Tuple[nn.Parameter, int, int, Any]] = []
        # What prepares a batch runs before the pass.
        self._seen = {id(model), id(skip), id(getattr(model, 'data_preprocessor', None))}
        for index, (owner, _, _) in enumerate(self.owners):  # It grows on the way.
            self._take_from(index, owner)

    def _take_from(self, index: int, owner: Any) -> None:
        kind = _kind_of(type(owner))
        if kind == _MODULE:
            # Torch's own layers change nothing but buffers, which its batch norms can do without.
            plain = self._lend and type(owner).__module__.startswith('torch.nn.')
            if not plain:
                self._take(index, vars(owner), INTERNALS)
            if plain and isinstance(owner, _BatchNorm):
                if owner.training and owner.track_running_stats:
                    owner.track_running_stats = False
                    self._norms.append(owner)
            elif owner._buffers or not plain:  # There may be new ones.
                self._take(index, owner._buffers)
            if owner._modules or not plain:
                self._take(index, owner._modules)
            for name, parameter in owner._parameters.items():
                if parameter is not None and not parameter.requires_grad:
                    self._untrained.append((parameter, parameter._version, index, name))
        elif kind == _OBJECT:
            self._take(index, vars(owner))
        elif kind == _TUPLE:
            for key, value in enumerate(owner):
                self._find(index, key, value)
        else:
            self._take(index, owner)

    def _take(self, index: int, contents: Any, leave: frozenset = frozenset()) -> None:
        if isinstance(contents, set):
            self.taken.append((index, contents, set(contents), list(contents), False))
            return
        before = dict.copy(contents) if isinstance(contents, dict) else list(contents)
        live, lent = list(_values(contents)), False
        if any(map(_kind_of, set(map(type, live)))):
            for key, value in _items(before):
                if key not in leave and _kind_of(type(value)):
                    copy = self._find(index, key, value)
                    if copy is not value:
                        _set(contents, key, copy)
                        lent = True
            if lent:
                live = list(_values(contents))
        self.taken.append((index, contents, before, live, lent))

    def _find(self, index: int, key: Any, value: Any) -> Any:
        """Note what a container holds; returns what it shall hold in its place."""
        kind = _kind_of(type(value))
        if kind in (_TENSOR, _ARRAY):
            return self._copy(index, key, value) if self._lend else value
        if kind == _TUPLE and self._lend and any(map(_kind_of, map(type, value))):
            return _like(value, [self._find(index, key, item) for item in value])
        if kind and id(value) not in self._seen:
            self._seen.add(id(value))
            self.owners.append((value, index, key))
        return value

    def _copy(self, index: int, key: Any, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy()
        # What has a graph is no state, but what is left over of an iteration.
        if value.requires_grad:
            return value
        copy = value.clone()
        if not copy.is_inference():
            self._lent.append((copy, copy._version, index, key))
        return copy

    def place(self, index: int, key: Any = '') -> str:
        """Where something is, as ``'bbox_head.loss_cls'``.

        Args:
            index: Of its owner.
            key: Its key there.
        """
        names = [str(key)] if key != '' else []
        while index:
            _, index, key = self.owners[index]
            names.append(str(key))
        return '.'.join(reversed(names))

    def put_back(self) -> List[str]:
        """Let everything contain what it contained.

        Returns:
            Names of what had changed.
        """
        names = [
            self.place(index, key)
            for copy, version, index, key in self._lent
            if copy._version != version
        ]
        for index, contents, before, live, lent in self.taken:
            if not is_as_it_was(contents, live):
                names.extend(self.place(index, key) for key in changed_keys(before, contents))
                _fill(contents, before)
            elif lent:
                for key, value in _items(before):
                    _set(contents, key, value)
        for norm in self._norms:
            norm.track_running_stats = True
        return names

    def check_parameters(self) -> None:
        """Refuse a pass that has changed parameters which gradients don't train.

        Raises:
            LocalLearningError: Names the parameter.
        """
        for parameter, version, index, name in self._untrained:
            if parameter._version != version:
                raise LocalLearningError(
                    f'{self.place(index, name)} is changed in the forward pass of the head, once '
                    'for each module that shares it: give modules heads of their own, '
                    "auxiliary='own'"
                )


def is_as_it_was(contents: Any, live: list) -> bool:
    """Whether a container holds the very objects that it held.

    Args:
        contents: The container.
        live: Its values then.
    """
    return len(contents) == len(live) and all(map(is_, _values(contents), live))


def changed_keys(before: Any, contents: Any) -> list:
    """Keys whose values are others than before, or new, or gone; ``['']`` for a list or set.

    Args:
        before: The contents as they were.
        contents: As they are.
    """
    if not isinstance(contents, dict):
        return ['']
    gone = object()
    return [
        key
        for key in {**before, **dict.copy(contents)}
        if dict.get(contents, key, gone) is not before.get(key, gone)
    ]


@lru_cache(maxsize=None)
def _kind_of(cls: type) -> int:
    """What an instance of a class is for a snapshot; 0 for what can't change."""
    for bases, kind in (
        ((nn.Parameter, torch.Size, torch.jit.ScriptModule, type), 0),
        (nn.Module, _MODULE),
        (Tensor, _TENSOR),
        (dict, _DICT),
        ((list, deque), _LIST),
        (set, _SET),
        (tuple, _TUPLE),
        (np.ndarray, _ARRAY),
    ):
        if issubclass(cls, bases):
            return kind
    own = cls.__module__.partition('.')[0] not in _FOREIGN
    return _OBJECT if own and cls.__dictoffset__ else 0


# MMEngine's ConfigDict makes copies of what it is asked for: containers are asked as what they are.
def _values(contents: Any) -> Any:
    return dict.values(contents) if isinstance(contents, dict) else contents


def _items(before: Union[dict, list]) -> list:
    return list(before.items() if isinstance(before, dict) else enumerate(before))


def _set(contents: Any, key: Any, value: Any) -> None:
    if isinstance(contents, dict):
        dict.__setitem__(contents, key, value)
    else:
        contents[key] = value


def _fill(contents: Any, before: Any) -> None:
    contents.clear()
    if isinstance(contents, set):
        contents.update(before)
    elif isinstance(contents, dict):
        for key, value in before.items():
            contents[key] = value
    else:
        contents.extend(before)


def _like(value: tuple, items: list) -> tuple:
    if all(map(is_, value, items)):
        return value
    return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
