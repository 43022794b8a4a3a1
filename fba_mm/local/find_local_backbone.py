"""Where a model's :class:`LocalBackbone` is."""

from typing import Dict

from torch import nn

from ..errors import LocalLearningError
from .local_backbone import LocalBackbone


def local_backbones(model: nn.Module) -> Dict[str, LocalBackbone]:
    """The :class:`LocalBackbone`s of a model by name; one that learns locally has exactly one.

    Args:
        model: A model of any OpenMMLab project.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, LocalBackbone)}


def find_local_backbone(model: nn.Module, seeker: str = 'FBAHook') -> LocalBackbone:
    """The one :class:`LocalBackbone` of a model.

    Args:
        model: A model of any OpenMMLab project.
        seeker: Who can't do without, for the message.

    Raises:
        LocalLearningError: There is none, or more than one.
    """
    found = local_backbones(model)
    if not found:
        raise LocalLearningError(
            f'{seeker} found no LocalBackbone in the model: wrap the backbone, model = dict('
            "backbone=dict(_delete_=True, type='LocalBackbone', backbone=_base_.model.backbone)), "
            "or in the same way mmagic's generator"
        )
    outer = [
        name
        for name in found
        if not any(name.startswith(f'{other}.') for other in found if other != name)
    ]
    if len(outer) > 1:
        raise LocalLearningError(
            f'the model has its backbone {len(outer)} times ({", ".join(outer)}) and runs all of '
            'them for one loss, as momentum-contrast and teacher-student models do; local learning '
            'follows one pass of one backbone: train this model without LocalBackbone'
        )
    if len(found) > 1:
        raise LocalLearningError(
            f'the model has {len(found)} LocalBackbones ({", ".join(found)}): wrap one backbone '
            'only, a module inside a module cannot be trained'
        )
    return next(iter(found.values()))
