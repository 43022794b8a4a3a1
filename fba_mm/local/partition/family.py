"""Which function unrolls which backbone."""
from typing import Callable, Dict

from torch import nn

from ...errors import LocalLearningError
from .segment import Unrolled

_FAMILIES: Dict[str, Callable[[nn.Module], Unrolled]] = {}


def backbone_family(class_name: str) -> Callable:
    """Register the function that unrolls a family of backbones.

    Families go by the name of the class that *defines* ``forward``, so that no OpenMMLab package
    is imported to look one up, all packages' ResNets are one family, and a subclass that runs its
    layers in another way isn't taken for its parent.

    Args:
        class_name: Name of the class whose ``forward`` the function reproduces.

    Example:
        >>> @backbone_family('ResNet')
        ... def unroll_resnet(backbone): ...
    """

    def register(unroll: Callable[[nn.Module], Unrolled]) -> Callable[[nn.Module], Unrolled]:
        _FAMILIES[class_name] = unroll
        return unroll

    return register


def owner_of_forward(backbone: nn.Module) -> type:
    """The class that defines how a backbone runs: its own, or one that it inherits from.

    Args:
        backbone: A built backbone.
    """
    return next(c for c in type(backbone).__mro__ if 'forward' in vars(c))


def unroll(backbone: nn.Module) -> Unrolled:
    """Unroll a backbone into the segments between which it can be cut.

    Args:
        backbone: A built backbone of a known family.

    Raises:
        LocalLearningError: The family is unknown.
    """
    owner = owner_of_forward(backbone)
    if owner.__name__ not in _FAMILIES:
        own = '' if owner is type(backbone) else f' (it runs as {owner.__name__} does)'
        raise LocalLearningError(
            f'backbone {type(backbone).__name__}{own} cannot be cut: use one of the families '
            f'{", ".join(sorted(_FAMILIES))}, set num_modules=1 (back-propagation), or describe it in '
            'a file of fba_mm/local/partition/ with @backbone_family')
    return _FAMILIES[owner.__name__](backbone)
