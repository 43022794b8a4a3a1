"""What a classifier's module makes of the feature bank.

Detection's heads need the bank's maps themselves, because they look at all scales. A classifier's
head looks at one vector, and there the bank could answer for the module: if the head reads the
class off deep features that it is handed, the module's loss is small and so is its gradient. A use
lets the bank help without that. The package has none by default, for none that was measured beats
a module without a bank; those are in ``projects/bank_uses``.
"""

import sys
import warnings
from abc import ABCMeta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Optional, Tuple

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..arguments import check_number
from ..errors import LocalLearningError
from ..tasks.classification import classes_of
from .local_step import LocalStep
from .partition import CutPoint
from .task_loss import StubbableBackbone

# Were part of the package.
_MOVED = ('ClassMemory', 'FeatureTarget', 'GatedContext', 'LogitTarget', 'SampleMemory')
_PROJECT = 'projects.bank_uses'


class BankUse(BaseModule, metaclass=ABCMeta):
    """One way of using the bank, a part of :class:`SLM`.

    A new way is one subclass that overrides what it needs, registered in MMEngine's ``MODELS``.

    Args:
        cut_point: Where the auxiliary network sits.
        weight: Factor of the loss that the use adds.

    Raises:
        LocalLearningError: ``weight`` isn't positive.
    """

    # Whether it reads the pooled features of earlier modules.
    reads_pooled = False
    # Scopes of the bank under which there is something to use.
    scopes = ('past', 'all', 'off')

    def __init__(self, cut_point: CutPoint, weight: float = 1.0):
        super().__init__()
        self.cut_point = cut_point
        self.weight = check_number(
            'bank_use.weight', weight, above=0, fix=', or leave bank_use out'
        )

    def enrich(self, features: Tuple[Tensor, ...], step: LocalStep) -> Tuple[Tensor, ...]:
        """Add what the bank knows to the module's features.

        Args:
            features: As the backbone returns them, (N, C, H, W) each.
            step: The batch and the bank.
        """
        return features

    def loss(
        self,
        features: Tuple[Tensor, ...],
        head: nn.Module,
        source: StubbableBackbone,
        step: LocalStep,
    ) -> Optional[Tensor]:
        """A loss that is added to the task's, or None.

        Args:
            features: The module's, without what the bank added.
            head: The model whose neck and head the module learns from.
            source: The backbone in it.
            step: The batch and the bank.
        """

    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See what the whole network made of the batch, at the end of its forward pass.

        Args:
            features: The backbone's, detached.
            step: The batch and the bank.
        """

    def check(self, model: nn.Module) -> None:
        """Refuse, before training, a model that this use doesn't serve.

        Args:
            model: The model around the backbone.

        Raises:
            LocalLearningError: The model is no classifier, or one with other classes.
        """
        name = type(self).__name__
        if classes_of(model) is None:
            raise LocalLearningError(
                f"bank_use of type '{name}' is for image classifiers, {type(model).__name__} is "
                'none: leave bank_use out'
            )

    def check_bank(self, scope: str) -> None:
        """Refuse, before training, a bank that has nothing for this use.

        Args:
            scope: Of the feature bank.

        Raises:
            LocalLearningError: Names a scope that fits.
        """
        name = type(self).__name__
        if scope not in self.scopes:
            raise LocalLearningError(
                f"bank_use of type '{name}' finds nothing in a bank of scope {scope!r}: set "
                f"custom_hooks=[dict(type='FBAHook', scope={self.scopes[0]!r})]"
            )

    def check_module_parallel(self) -> None:
        """Refuse, before training, that later modules are in other processes than this one.

        Raises:
            LocalLearningError: The use learns from what they make of a batch.
        """
        name = type(self).__name__
        if type(self).observe is not BankUse.observe:
            raise LocalLearningError(
                f"bank_use of type '{name}' learns from the network's deepest features, which "
                'another process has: leave bank_use out, or set '
                "model_wrapper_cfg.type='LocalDataParallel'"
            )


def build_bank_use(cfg: dict, cut_point: CutPoint) -> BankUse:
    """Build a use of the bank.

    Args:
        cfg: Its config.
        cut_point: Where the auxiliary network sits.

    Raises:
        LocalLearningError: It has moved to ``projects/bank_uses``, and isn't found there.
    """
    kind = str(cfg.get('type')).split('.')[-1]
    if kind in _MOVED:
        cfg = dict(cfg, type=_moved(kind))
    return MODELS.build(dict(cfg), default_args=dict(cut_point=cut_point))


def __getattr__(name: str) -> type:
    if name in _MOVED:
        return _moved(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _moved(kind: str) -> type:
    """What configs from before the move name; the repository has it, if that is where this runs."""
    found = MODELS.module_dict.get(kind)
    if found is not None:
        return found
    how = f"set custom_imports=dict(imports=['fba_mm', '{_PROJECT}']), the repository on PYTHONPATH"
    path = Path(__file__).parents[2] / 'projects/bank_uses/__init__.py'
    if not path.exists():
        raise LocalLearningError(
            f"bank_use of type '{kind}' is no longer part of the package but of its repository: "
            f'{how}, or leave bank_use out'
        )
    warnings.warn(f"bank_use of type '{kind}' is in projects/bank_uses now: {how}", stacklevel=2)
    spec = spec_from_file_location(_PROJECT, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    sys.modules[_PROJECT] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[_PROJECT])
    return MODELS.module_dict[kind]
