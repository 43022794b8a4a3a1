"""The method: cutting a backbone, auxiliary networks, the feature bank.

Knows torch and the registries, but no runner: training a loss is a callable that
:mod:`fba_mm.engine` hands in.
"""

from .assigned_targets import AssignedTargets
from .auxiliary import SLM, Auxiliary
from .feature_bank import FeatureBank
from .find_local_backbone import find_local_backbone, local_backbones
from .head_settings import HeadSettings
from .local_backbone import LocalBackbone
from .local_step import LocalStep

__all__ = [
    'AssignedTargets',
    'Auxiliary',
    'FeatureBank',
    'HeadSettings',
    'LocalBackbone',
    'LocalStep',
    'SLM',
    'find_local_backbone',
    'local_backbones',
]
