"""Which function unrolls which backbone."""

import sys
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from torch import nn

from ...errors import LocalLearningError
from .segment import Unrolled

_HOW = (
    'describe how it runs with @fba_mm.backbone_family in a module that custom_imports names '
    '(docs/backbones.md shows how), or set num_modules=1 (back-propagation)'
)

# What containers do whose children may be run one by one in their place.
_CHAINS = (nn.Sequential.forward, nn.ModuleList.forward)


class _Family(NamedTuple):
    classes: Tuple[Union[str, type], ...]
    unroll: Callable[[nn.Module], Unrolled]
    replaces: Tuple[str, ...]
    steps_into: Tuple[Union[str, type], ...]

    def changed(self, cls: Union[str, type], backbone: nn.Module) -> List[str]:
        """Which of the replaced methods aren't those of one of the family's classes."""
        return [
            name for name in self.replaces if _method(backbone, name) is not _method_of(cls, name)
        ]

    def fits(self, backbone: nn.Module) -> bool:
        return any(
            not self.changed(cls, backbone)
            for cls in self.classes
            if isinstance(cls, str) or isinstance(backbone, cls)
        )


_FAMILIES: List[_Family] = []


def backbone_family(
    *classes: Union[str, type],
    replaces: Sequence[str] = (),
    steps_into: Sequence[Union[str, type]] = (),
) -> Callable:
    """Register the function that unrolls a family of backbones.

    A backbone belongs to a family if the very functions that the family stands in for are those of
    one of these classes: a subclass that inherits them does, one with a ``forward`` of its own
    doesn't, and neither does another class of the same name. Of classes registered later, the last
    one counts.

    Args:
        *classes: Classes whose ``forward`` the function reproduces, or their dotted names, such as
            ``'mmdet.models.backbones.resnet.ResNet'``, which import nothing.
        replaces: Names of other methods of the backbone that ``forward`` calls and the segments
            don't.
        steps_into: Classes of submodules, beside ``Sequential`` and ``ModuleList``, that aren't
            called as a whole, for the segments run their children one by one; or their dotted
            names.

    Example:
        >>> @backbone_family('mmdet.models.backbones.resnet.ResNet')
        ... def unroll_resnet(backbone): ...
    """
    for cls in classes:
        if not isinstance(cls, type) and '.' not in cls:
            raise LocalLearningError(
                f'backbone_family({cls!r}): give the class itself, or its full name as in '
                "'mmdet.models.backbones.resnet.ResNet'"
            )

    def register(unroll: Callable[[nn.Module], Unrolled]) -> Callable[[nn.Module], Unrolled]:
        _FAMILIES.append(_Family(classes, unroll, ('forward', *replaces), tuple(steps_into)))
        return unroll

    return register


def unroll(backbone: nn.Module) -> Unrolled:
    """Unroll a backbone into the segments between which it can be cut.

    Args:
        backbone: A built backbone of a known family.

    Raises:
        LocalLearningError: No family is known to run as it does.
    """
    family = next((family for family in reversed(_FAMILIES) if family.fits(backbone)), None)
    if family is None:
        raise LocalLearningError(_unknown(backbone))
    unrolled = family.unroll(backbone)
    chains = [*_CHAINS, *(_method_of(cls, 'forward') for cls in family.steps_into)]
    for name, container in _containers(backbone, unrolled):
        if _method(container, 'forward') not in chains:
            raise LocalLearningError(
                f'backbone {type(backbone).__name__} cannot be cut: its {name} '
                f'runs by {_method_name(container, "forward")}, which running its layers one by '
                f'one would leave out: {_HOW}'
            )
    return unrolled


def _unknown(backbone: nn.Module) -> str:
    message = f'backbone {type(backbone).__name__} cannot be cut: '
    for family in reversed(_FAMILIES):
        for cls in family.classes:
            changed = family.changed(cls, backbone)
            if 'forward' not in changed:
                return (
                    f'{message}it runs as {_name(cls)} does, but with another {changed[0]}, '
                    f'{_method_name(backbone, changed[0])}: {_HOW}'
                )
    classes = [cls for family in _FAMILIES for cls in family.classes]
    runs = f'{message}it runs by {_method_name(backbone, "forward")}, '
    namesakes = [str(cls) for cls in classes if _name(cls) == type(backbone).__name__]
    if namesakes:
        return f'{runs}and not as {", ".join(namesakes)}: take one of these, {_HOW}'
    return (
        f"{runs}which is none of the families of OpenMMLab's packages "
        f'({", ".join(sorted(set(map(_name, classes))))}): take one of these, {_HOW}'
    )


def _containers(backbone: nn.Module, unrolled: Unrolled) -> Iterator[Tuple[str, nn.Module]]:
    """Submodules whose children are run in their place, and their names."""
    names = {}
    for segment in unrolled.segments:
        for path in segment.submodules:
            parts = path.split('.')
            names.update(dict.fromkeys('.'.join(parts[:i]) for i in range(1, len(parts))))
    for name in names:
        yield name, backbone.get_submodule(name)


def _method_of(cls: Union[str, type], name: str) -> Optional[Callable]:
    """The function that a class has under a name; None if its module isn't imported.

    One that was put in its place from outside isn't what the named class is known for.
    """
    if isinstance(cls, type):
        return getattr(cls, name, None)
    module, _, class_name = cls.rpartition('.')
    function = vars(getattr(sys.modules.get(module), class_name, object)).get(name)
    return function if getattr(function, '__module__', None) == module else None


def _method(module: nn.Module, name: str) -> Optional[Callable]:
    """The function behind a bound method of a module."""
    method = getattr(module, name, None)
    return getattr(method, '__func__', method)


def _method_name(module: nn.Module, name: str) -> str:
    method = _method(module, name)
    return (
        f'{getattr(method, "__module__", type(method).__module__)}.'
        f'{getattr(method, "__qualname__", type(method).__qualname__)}'
    )


def _name(cls: Union[str, type]) -> str:
    return cls.__name__ if isinstance(cls, type) else cls.rpartition('.')[2]
