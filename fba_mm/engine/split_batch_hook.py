"""``SplitBatchHook``: a batch in several forward and backward passes, with the gradients of one."""

from contextlib import ExitStack
from typing import Any, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import check_count
from ..errors import LocalLearningError
from ..local import local_backbones
from ..local.assigned_targets import AssignedTargets
from ..local.head_batches import add_losses, can_be_split, feed, is_image_mean, slices_of
from ..local.task_loss import Losses, map_losses
from ..tasks import task_of_model
from .local_optim_wrapper import LocalOptimWrapper


@HOOKS.register_module()
class SplitBatchHook(Hook):
    """Trains on some images of a batch after the other, and steps once, as on all of them.

    Activations are those of a few images then, and nothing is computed twice. MMEngine's
    ``accumulative_counts`` takes several batches for a step, each with its own padding, mixing of
    images and divisor of the loss. Here the batch is preprocessed as a whole, and each part's loss
    has the share that it has in the loss of the whole: losses and gradients are the same up to the
    order of sums, but for what dropout draws.

    That holds, and is looked up before training, where no batch normalization is trained and the
    loss is a mean over images (image classifiers on cross entropy, super-resolution on a pixel
    loss, segmentors on plain cross entropy) or a sum with a divisor that is known beforehand
    (anchor-based single-stage detectors). Two-stage detectors and those that match predictions with
    objects divide by numbers that depend on the predictions for all images.

    Goes with ``optim_wrapper.type='LocalOptimWrapper'``, in one process, without local learning.

    Args:
        images: Images at once.

    Example:
        >>> custom_hooks = [dict(type='SplitBatchHook', images=1)]
        >>> optim_wrapper = dict(type='LocalOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    """

    def __init__(self, images: int = 1):
        check_count('SplitBatchHook.images', images, what='a number of images')
        self.images = images
        self._optim_wrapper: Optional[LocalOptimWrapper] = None
        self._handles: list = []
        self._is_checked = False
        # Of the batch under way.
        self._context = ExitStack()
        self._fed: Losses = {}
        self._last, self._images_of_batch = slice(0), 0

    def before_train(self, runner) -> None:
        """Attach to the model that is trained."""
        if is_model_wrapper(runner.model):
            raise LocalLearningError(
                'SplitBatchHook is for one process: leave it out, with fewer images per process'
            )
        self.attach(runner.model, runner.optim_wrapper)

    def attach(self, model: nn.Module, optim_wrapper: LocalOptimWrapper) -> None:
        """Split the batches of ``model`` from now on, whoever calls its ``train_step``.

        Args:
            model: A model that trains by back-propagation.
            optim_wrapper: Adds up the gradients.

        Raises:
            LocalLearningError: The optimizer wrapper isn't a :class:`LocalOptimWrapper`, or the
                model trains locally.
        """
        if not isinstance(optim_wrapper, LocalOptimWrapper):
            raise LocalLearningError(
                f'SplitBatchHook does not go with {type(optim_wrapper).__name__}: set '
                "optim_wrapper.type='LocalOptimWrapper', with --amp 'AmpLocalOptimWrapper'"
            )
        if any(m.num_modules > 1 for m in local_backbones(model).values()):
            raise LocalLearningError(
                'SplitBatchHook is for back-propagation: with local learning, set head_batch_size '
                'of the LocalBackbone'
            )
        self._optim_wrapper = optim_wrapper
        self._handles = [
            model.register_forward_pre_hook(self._open, with_kwargs=True),
            model.register_forward_hook(self._close, always_call=True),
        ]

    def after_train(self, runner) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _open(self, model: nn.Module, args: tuple, kwargs: dict) -> Optional[Tuple[tuple, dict]]:
        """Train on all images but the last ones, which are left to the call itself."""
        if kwargs.get('mode') != 'loss' or not model.training:
            return None
        kwargs = {**dict(zip(('inputs', 'data_samples'), args)), **kwargs}
        inputs, data_samples = kwargs['inputs'], kwargs['data_samples']
        if not self._is_checked:
            reason = why_not_split(model)
            if reason:
                raise LocalLearningError(
                    f'SplitBatchHook: {reason}, and parts of a batch do not train as the whole '
                    'does: leave the hook out'
                )
            self._is_checked = True
        *parts, last = slices_of(len(inputs), self.images)
        if not parts:
            return None
        targets = AssignedTargets(data_samples)
        self._context.enter_context(targets.answering(targets.heads_of(model)))

        def loss_of(_: tuple, part: slice) -> Losses:
            with targets.only(part):
                # Not called as a module: this hook is for the batch.
                losses = model.forward(inputs[part], _of(data_samples, part), mode='loss')
            return _shared(model, losses, part, len(inputs))

        def accumulate(losses: Losses) -> None:
            self._optim_wrapper.accumulate_local(model.parse_losses(losses)[0])
            torch.clear_autocast_cache()  # Casts of weights have given their gradients.

        _, self._fed = feed((), [*parts, last], loss_of, accumulate)
        self._last, self._images_of_batch = last, len(inputs)
        self._context.enter_context(targets.only(last))
        return (), dict(kwargs, inputs=inputs[last], data_samples=_of(data_samples, last))

    def _close(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Add the losses of the other parts to those of the last."""
        self._context.close()
        fed, self._fed = self._fed, {}
        if not fed or output is None:
            return output
        return add_losses(_shared(model, output, self._last, self._images_of_batch), fed)


def _shared(model: nn.Module, losses: Losses, part: slice, images: int) -> Losses:
    """The losses of a part with the share that they have in those of the batch."""
    if _is_sum(model):
        return losses  # Divided by the number of the whole batch already.
    share = (part.stop - part.start) / images
    return map_losses(losses, lambda loss: loss * share)


def _of(data_samples: Any, part: slice) -> Any:
    if isinstance(data_samples, (list, tuple)):
        return data_samples[part]
    # mmagic's one sample of stacked targets.
    return type(data_samples).stack(data_samples.split(True)[part])


def why_not_split(model: nn.Module) -> str:
    """Why the losses of a model on parts of a batch don't make up that on the whole batch.

    Args:
        model: A model in training mode.

    Returns:
        The reason, as a clause; empty if they do.

    Example:
        >>> cfg = load_config('fba_mm::demo/retinanet_r34_digits.py')
        >>> why_not_split(TrainingStep(cfg).model)
        'batch normalization is trained (backbone.bn1)'
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            return f'batch normalization is trained ({name})'
    if _is_split_by_its_head(model) or task_of_model(model).loss_is_image_mean(model):
        return ''
    return (
        f'the loss of {type(model).__name__} is not known to be a mean over images: its divisor '
        'may depend on predictions for all of them'
    )


def _is_split_by_its_head(model: nn.Module) -> bool:
    return hasattr(model, 'bbox_head') and can_be_split(model, getattr(model, 'backbone', None))


def _is_sum(model: nn.Module) -> bool:
    """Whether losses are sums over anchors, divided by a number that is known beforehand."""
    return _is_split_by_its_head(model) and not is_image_mean(model)
