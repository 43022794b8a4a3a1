"""``LocalAccuracyHook``: how good the modules are by themselves."""

from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from ..distributed import placement_of
from ..errors import LocalLearningError
from ..local import FeatureBank, LocalStep, find_local_backbone


@HOOKS.register_module()
class LocalAccuracyHook(Hook):
    """Logs the accuracy of every module's own head during validation, as ``local_1/accuracy``.

    For image classifiers. The last module's is the accuracy of the whole network, which the
    config's evaluator reports. The modules run once more for it, with their auxiliary networks.

    Args:
        scope: What auxiliary networks find in the feature bank; that of :class:`FBAHook`.

    Raises:
        LocalLearningError: In validation, an auxiliary network makes no class scores, or an image
            has several classes or none.

    Example:
        >>> custom_hooks = [dict(type='FBAHook'), dict(type='LocalAccuracyHook')]
    """

    def __init__(self, scope: str = 'past'):
        self.bank = FeatureBank(scope)
        self._correct: Optional[Tensor] = None

    def before_val_epoch(self, runner) -> None:
        """Count anew."""
        self._correct = None

    @torch.no_grad()
    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[List] = None
    ) -> None:
        """Ask every module about the batch."""
        model = placement_of(runner.model).model
        local_backbone = find_local_backbone(model)
        if local_backbone.num_modules == 1:
            return
        data = model.data_preprocessor(data_batch, False)
        step = LocalStep(
            model,
            local_backbone,
            data['inputs'],
            data['data_samples'],
            self.bank,
            train=None,
            generator=torch.Generator(),
        )
        labels = step.labels()
        if labels.ndim == 2:
            raise LocalLearningError(
                'LocalAccuracyHook compares with one class per image, and these have shares of '
                'several: leave it out of custom_hooks'
            )
        found = torch.stack(
            [
                (logits.argmax(1) == labels).sum()
                for logits in local_backbone.local_logits(step.images, step)
            ]
        )
        counts = torch.cat([found, found.new_tensor([len(labels)])])
        self._correct = counts if self._correct is None else self._correct + counts
        self.bank.clear()

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Add the accuracies, in per cent, to the metrics and the log."""
        if self._correct is None or metrics is None:
            return
        all_reduce(self._correct)
        *correct, count = self._correct.tolist()
        for i, number in enumerate(correct):
            name, accuracy = f'local_{i + 1}/accuracy', 100 * number / count
            metrics[name] = accuracy
            runner.message_hub.update_scalar(f'val/{name}', accuracy)
