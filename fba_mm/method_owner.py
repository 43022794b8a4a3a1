"""Which class a method comes from, and what a class descends from.

What is known of a class's loss, say, holds for a subclass only as long as it doesn't replace it.
"""

from typing import Any, Collection, Optional


def method_owner(of: Any, method: str) -> type:
    """The class that defines a method.

    Args:
        of: A class or an object.
        method: Name of the method.

    Returns:
        The class; ``object`` if there is none.

    Example:
        >>> from mmdet.models import RetinaNet
        >>> method_owner(RetinaNet, 'loss')
        <class 'mmdet.models.detectors.single_stage.SingleStageDetector'>
    """
    kind = of if isinstance(of, type) else type(of)
    return next((base for base in kind.__mro__ if method in vars(base)), object)


def is_method_of(of: Any, method: str, packages: Collection[str], owners: Collection[str]) -> bool:
    """Whether a method comes from one of the classes of some packages, not from a user's namesake.

    Args:
        of: A class or an object.
        method: Name of the method.
        packages: Such as ``('mmdet',)``.
        owners: Names of the classes.
    """
    owner = method_owner(of, method)
    return owner.__name__ in owners and owner.__module__.partition('.')[0] in packages


def descends_from(kind: Optional[type], *names: str) -> bool:
    """Whether a class, or one that it descends from, has one of these names.

    By name, no package has to be imported to look.

    Args:
        kind: The class; None descends from nothing.
        *names: Bare names.

    Example:
        >>> descends_from(torch.nn.SyncBatchNorm, '_BatchNorm')
        True
    """
    return any(base.__name__ in names for base in getattr(kind, '__mro__', ()))
