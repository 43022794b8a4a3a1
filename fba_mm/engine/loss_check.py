"""Losses that are NaN or infinite: named, and kept from the weights where that is free."""

import logging
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import LocalLearningError


class LossCheck:
    """Looks at the losses of all modules, and stops training at one that is no number.

    A module that rots feeds those behind it, and with one norm for all gradients
    (``optim_wrapper.clip_grad``) every weight is lost in the same step. On the CPU a loss is looked
    at before its backward pass. On other devices looking means waiting, so all losses of an
    iteration are looked at together, once, before the backward pass of the last: with
    ``optim_wrapper.apply='end'`` no weight has changed by then; with ``'eager'``, those of modules
    before the last have, in memory, and no checkpoint is written of them. Running statistics of
    batch normalization have seen the batch in any case.

    Args:
        mode: ``'stop'``, or ``'skip'``: leave out the backward pass of that loss, so that the
            weights that it alone trains stay as they are, and warn. Each loss is waited for then.
        num_modules: K; set when it changes.

    Raises:
        LocalLearningError: ``mode`` is neither; in training, a loss is no number.
    """

    def __init__(self, mode: str, num_modules: int):
        self.mode = mode
        self.num_modules = num_modules
        self._iteration = 0
        self._waiting: List[Tuple[int, Tensor, Dict[str, Tensor]]] = []

    def begin(self, iteration: int) -> None:
        """Start an iteration.

        Args:
            iteration: From 0.
        """
        self._iteration = iteration
        self._waiting.clear()

    def trains(self, index: int, loss: Tensor, terms: Dict[str, Tensor]) -> bool:
        """Whether a module, but for the last, is to be trained on its loss.

        Args:
            index: Of the module, from 0.
            loss: The loss, a scalar.
            terms: Its summands by name.

        Raises:
            LocalLearningError: The loss is no number, and known to be none already.
        """
        if self.mode == 'stop' and loss.device.type != 'cpu':
            self._waiting.append((index, loss.detach(), terms))
            return True
        return self._is_number(loss) or self._report(index, loss, terms)

    def finishes(self, loss: Optional[Tensor] = None) -> bool:
        """Whether the model is to be trained on its own loss; looks at all losses not yet seen.

        Args:
            loss: The model's own; None in a process without it.

        Raises:
            LocalLearningError: One of them is no number.
        """
        waiting, self._waiting = self._waiting, []
        if loss is not None:
            waiting.append((self.num_modules - 1, loss, {}))
        losses = [one.detach().float().reshape(()) for _, one, _ in waiting]
        if not losses or self._is_number(torch.stack(losses)):
            return True
        return all(
            self._is_number(one) or self._report(*module) for one, module in zip(losses, waiting)
        )

    @staticmethod
    def _is_number(losses: Tensor) -> bool:
        return bool(torch.isfinite(losses.detach()).all())

    def _report(self, index: int, loss: Tensor, terms: Dict[str, Tensor]) -> bool:
        place = (
            'the model itself'
            if self.num_modules == 1
            else (f'module {index + 1} of {self.num_modules}')
        )
        values = ', '.join(
            f'{name} {float(value.detach())}'
            for name, value in terms.items()
            if name != 'loss' and not self._is_number(value)
        )
        what = (
            f'iteration {self._iteration + 1}: the loss of {place} is {float(loss.detach())}'
            f'{f" ({values})" if values else ""}'
        )
        if self.mode == 'skip':
            print_log(f'{what}; it is not trained on this batch', 'current', logging.WARNING)
            return False
        raise LocalLearningError(
            f'{what}: look at the data of this batch, lower the learning rate, clip gradients with '
            "optim_wrapper.clip_grad, or go on without this module's step, "
            "dict(type='FBAHook', invalid_loss='skip')"
        )
