"""What is set on the model's head during training, carried over to the heads of modules.

Hooks switch losses (mmpretrain's SwitchRecipeHook), margins (SetAdaptiveMarginsHook), weights
(WarmupParamHook) and modes (mmdet's YOLOXModeSwitchHook) by setting attributes of the model. A
module's own copy of the head has attributes of its own.
"""

import copy
import logging
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, List, Optional, Set, Tuple

from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import LocalLearningError
from .kept_state import Snapshot, changed_keys, is_as_it_was
from .task_loss import FeatureStub, StubbableBackbone

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)


class HeadSettings:
    """Lets copies of the model's head follow what is set on it between training passes.

    What the model's own pass changes is state, and a copy has its own; what is changed between two
    passes was set, and is set on the copies too, as copies of modules and other objects. Tensors
    count when another is put in their place, as ``head.set_margins`` of mmpretrain's ArcFace does,
    not when they are filled anew.

    Args:
        model: The model around the backbone.
        source: The backbone in it.
        auxiliaries: The auxiliary networks.
    """

    def __init__(self, model: nn.Module, source: StubbableBackbone, auxiliaries: nn.ModuleList):
        self._model, self._source = model, source
        # A copy is a model of the same class; others have nothing to follow.
        own = [
            part
            for auxiliary in auxiliaries
            for part in auxiliary.modules()
            if isinstance(getattr(part, 'backbone', None), FeatureStub)
        ]
        self._copies = [part for part in own if type(part) is type(model)]
        self._others = any(
            not (auxiliary.shares_head or any(part in self._copies for part in auxiliary.modules()))
            for auxiliary in auxiliaries
        )
        self._told: Set[str] = set()
        self._before: Optional[Snapshot] = None
        self.note()

    def note(self) -> None:
        """Take what the model has now as given."""
        if self._copies or self._others:
            self._before = Snapshot(self._model, self._source)

    def follow(self) -> bool:
        """Set on the copies what has been set on the model since :meth:`note`.

        Returns:
            Whether anything has been set.

        Raises:
            LocalLearningError: What has been set can't be copied.
        """
        if self._before is None:
            return False
        changed = False
        for index, contents, before, live, _ in self._before.taken:
            if is_as_it_was(contents, live):
                continue
            for key in changed_keys(before, contents):
                if self._is_setting(key, contents):
                    self._carry_over(index, contents, key)
                    changed = True
        if changed:
            self.note()
        return changed

    @staticmethod
    def _is_setting(key: Any, contents: Any) -> bool:
        value = contents.get(key) if isinstance(contents, dict) else None
        # Private attributes are a module's own business, as MMEngine's notes on initialization.
        return not (
            key == 'training'
            or isinstance(key, str)
            and key.startswith('_')
            or isinstance(value, _FUNCTIONS)
            or isinstance(value, Tensor)
            and value.requires_grad
        )

    def _carry_over(self, index: int, contents: Any, key: Any) -> None:
        place = self._before.place(index, key)
        owners = self._owners(index)
        missed = self._others
        for head in self._copies:
            owner = _counterpart(head, owners)
            if owner is None:
                missed = True
                continue
            try:
                _set(_container_like(contents, owners[-1][0], owner), key, contents)
            except Exception as error:  # Of whatever a hook has put there.
                raise LocalLearningError(
                    f'{place} was set on the model during training and cannot be copied to the '
                    f"modules' own heads ({error}): let modules share the head, auxiliary="
                    "dict(type='SLM')"
                ) from error
        if missed and place not in self._told:
            self._told.add(place)
            print_log(
                f'LocalBackbone: {place} was set on the model during training; heads or losses of '
                'another kind, which modules learn from, have no such setting and stay as they are',
                'current',
                logging.WARNING,
            )

    def _owners(self, index: int) -> List[Tuple[Any, Any]]:
        """The objects from the model down to one, each with its key in the one above."""
        chain = []
        while index:
            owner, above, key = self._before.owners[index]
            chain.append((owner, key))
            index = above
        return [(self._model, ''), *reversed(chain)]


def _counterpart(head: nn.Module, owners: List[Tuple[Any, Any]]) -> Any:
    """What a copy has in the place of the last of these objects; None if nothing like it."""
    found: Any = head
    for owner, key in owners[1:]:
        if isinstance(found, dict):
            found = dict.get(found, key)
        elif isinstance(found, (list, tuple)):
            found = found[key] if key < len(found) else None
        else:
            found = getattr(found, key, None)
        if type(found) is not type(owner):
            return None
    return found


def _container_like(contents: Any, owner: Any, other: Any) -> Any:
    """The container of ``other`` that corresponds to ``contents`` of ``owner``."""
    if contents is owner:
        return other
    for name in ('_buffers', '_modules'):
        if contents is getattr(owner, name, None):
            return getattr(other, name)
    return vars(other)


def _set(target: Any, key: Any, contents: Any) -> None:
    if not isinstance(contents, dict):
        items = copy.deepcopy(list(contents))
        target.clear()
        target.update(items) if isinstance(target, set) else target.extend(items)
    elif key in contents:
        target[key] = copy.deepcopy(dict.get(contents, key))
    else:
        target.pop(key, None)
