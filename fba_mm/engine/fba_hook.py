"""``FBAHook``: what a module may see while it trains."""

from contextlib import ExitStack, contextmanager
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple, Union, cast

import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..arguments import check_number
from ..distributed import Placement, Whole, placement_of, weight_averages
from ..distributed.processes import joint_errors
from ..errors import LocalLearningError
from ..local import (
    AssignedTargets,
    FeatureBank,
    HeadSettings,
    LocalBackbone,
    LocalStep,
    find_local_backbone,
    local_backbones,
)
from ..local.local_step import Idle
from ..local.task_loss import Features, Losses
from ..tasks import task_of_model
from .iteration_seed_hook import IterationSeedHook
from .local_optim_wrapper import LocalOptimWrapper, local_form
from .local_optim_wrapper_constructor import check_settings
from .loss_check import LossCheck
from .optimizer_settings import check_keys, check_param_groups


def check_local_training(
    model: nn.Module, optim_wrapper: type, scope: str = 'past'
) -> LocalBackbone:
    """Refuse, before training, what can't be trained locally.

    Args:
        model: The model, not wrapped for distributed training.
        optim_wrapper: Class of the optimizer wrapper.
        scope: Of the feature bank.

    Raises:
        LocalLearningError: Says what is wrong and how to fix it.
    """
    local_backbone = find_local_backbone(model)
    if not issubclass(optim_wrapper, LocalOptimWrapper):
        name = optim_wrapper.__name__
        local_form = 'AmpLocalOptimWrapper' if name.startswith('Amp') else 'LocalOptimWrapper'
        raise LocalLearningError(
            f'optim_wrapper.type is {name}, which takes no local losses: '
            f"set optim_wrapper = dict(type='{local_form}')"
        )
    for auxiliary in local_backbone.auxiliary:
        auxiliary.check(model, local_backbone)
        auxiliary.check_bank(scope)
    return local_backbone


def _check_checkpointing(paths: Union[None, str, Sequence[str]], name: str) -> None:
    """Refuse MMEngine's wrapping of layers: the first of a module would get no gradients."""
    paths = [paths] if isinstance(paths, str) else paths or ()
    for path in paths:
        if f'{path}.'.startswith(f'{name}.'):
            raise LocalLearningError(
                f'activation_checkpointing={path!r} leaves layers of a local module without '
                'gradients: set with_cp=True of the wrapped backbone instead'
            )


def _check_as_the_tool_does(runner: Runner, model: nn.Module, optim_wrapper: dict) -> None:
    """What ``tools/train.py`` finds wrong with settings and data, for other tools and Python."""
    # Of the layer above, which imports this one.
    from ..preflight.classes import check_classes
    from ..preflight.data import check_data

    with joint_errors():
        check_keys(optim_wrapper, model)
        check_param_groups(runner.optim_wrapper, model)
        if runner.cfg.get('train_dataloader') is not None:
            check_data(runner.cfg, 'train', 'val')
            check_classes(runner.cfg, model, 'train', 'val')


def _advise_own_heads(runner: Runner, model: nn.Module, local_backbone: LocalBackbone) -> None:
    """Say so where modules learn far less from one head that all of them share."""
    advice = task_of_model(model).shared_head_advice
    if advice is not None and any(one.shares_head for one in local_backbone.auxiliary):
        runner.logger.warning(advice)


@HOOKS.register_module()
class FBAHook(IterationSeedHook):
    """Links :class:`LocalBackbone` with the optimizer wrapper, and fills the feature bank.

    Catches the preprocessed batch of every training step, so that modules can compute the task's
    loss on it; opens the bank for the batch and empties it afterwards; writes each module's loss
    to the log as ``local_1.loss``, ``local_2.loss``, ... Seeds random draws as
    :class:`IterationSeedHook` does.

    Args:
        scope: What modules find in the bank. ``'past'``: maps of earlier modules (no extra
            compute). ``'all'``: deeper maps too, from an extra forward without gradients.
            ``'off'``: nothing.
        bank_dtype: What maps of the extra forward are stored in; see :class:`FeatureBank`.
        log_terms: Also log each term of the local losses (``local_1.loss_cls``, ...).
        invalid_loss: What is done when a module's loss, or the model's own, is NaN or infinite.
            ``'stop'``: training ends with a line that names module and iteration; see
            :class:`LossCheck`. ``'skip'``: there is no backward pass of that loss, and a warning;
            on a GPU this waits for each loss. With MMDetection's ``CheckInvalidLossHook``, training
            stops.
        exact_from: Share of the training, between 0 and 1, after which the whole network is
            trained by the model's own loss, back-propagation with the backbone recomputed in three
            spans. Modules then learn what those behind them need. Memory is that of
            ``--checkpoint 3`` from there on. Unset, modules are trained locally to the end.

    Raises:
        LocalLearningError: Unknown ``scope`` or ``invalid_loss``, ``exact_from`` is not between 0
            and 1; in training: a loss is no number; before training: ``'skip'`` in several
            processes or with ``head_batch_size``, ``exact_from`` with one module, or where
            parameters or modules are spread over processes, no or several LocalBackbones, another
            optimizer wrapper, an auxiliary network that doesn't fit, or another model wrapper than
            :class:`LocalDataParallel`, :class:`LocalShardedDataParallel` and
            :class:`LocalModuleParallel`.

    Example:
        >>> custom_hooks = [dict(type='FBAHook', scope='past')]
        >>> custom_hooks = [dict(type='FBAHook', exact_from=0.7)]  # the last 30 % exactly
    """

    # As MMEngine's hooks have it.
    priority = 'NORMAL'
    # Set by attach().
    _local_backbone: LocalBackbone
    _optim_wrapper: LocalOptimWrapper

    def __init__(
        self,
        scope: str = 'past',
        bank_dtype: Optional[str] = None,
        log_terms: bool = False,
        invalid_loss: str = 'stop',
        exact_from: Optional[float] = None,
    ):
        if invalid_loss not in ('stop', 'skip'):
            raise LocalLearningError(f"invalid_loss={invalid_loss!r}: give 'stop' or 'skip'")
        if exact_from is not None:
            check_number('FBAHook.exact_from', exact_from, above=0, below=1)
        self.invalid_loss = invalid_loss
        self.exact_from = exact_from
        self._check: Optional[LossCheck] = None
        self.bank = FeatureBank(scope, bank_dtype)
        self.log_terms = log_terms
        self._placement: Placement = Whole(nn.Identity())
        self._unread: FrozenSet[int] = frozenset()
        self._handles: list = []
        self._generator = torch.Generator()
        self._log: Dict[str, Tensor] = {}
        self._heads: List[nn.Module] = []
        self._settings: Optional[HeadSettings] = None
        # What is open during the model's pass for a loss.
        self._open = ExitStack()

    def __deepcopy__(self, memo: dict) -> 'FBAHook':
        # The model holds this hook's callbacks. A copy of the model, for EMA say, is not trained.
        return self

    def before_run(self, runner: Runner) -> None:
        """Check everything that a local step needs, before checkpoints are touched."""
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            return  # Validation or testing alone: the runner builds no optimizer then.
        if sum(isinstance(hook, FBAHook) for hook in runner.hooks) > 1:
            raise LocalLearningError(
                'custom_hooks has several FBAHooks: modules would be trained as many times, leave '
                'one'
            )
        placement = placement_of(runner.model)
        model = placement.model
        settings = runner.cfg.get('optim_wrapper') or {}
        runner.optim_wrapper = local_form(runner.optim_wrapper, settings)
        local_backbone = check_local_training(model, type(runner.optim_wrapper), self.bank.scope)
        placement.check(runner, self.bank.scope)
        self._check_exact_phase(placement, local_backbone)
        (name,) = local_backbones(model)
        check_settings(local_backbone, name, settings)
        _check_checkpointing(runner.cfg.get('activation_checkpointing'), name)
        if not getattr(runner, 'is_checked', False):
            _check_as_the_tool_does(runner, model, settings)
        _advise_own_heads(runner, model, local_backbone)
        self._check = self._loss_check(runner, local_backbone)
        # Before other hooks' before_train, where some set what a resumed training has come to.
        self._settings = HeadSettings(model, local_backbone, local_backbone.auxiliary)
        count = local_backbone.num_modules
        what = (
            f'Local learning in {count} modules, feature bank {self.bank.scope!r}'
            if count > 1
            else 'num_modules=1'
        )
        runner.logger.info(f'{what}:\n{local_backbone.describe()}')
        if placement.describe():
            runner.logger.info(placement.describe())

    def _check_exact_phase(self, placement: Placement, local_backbone: LocalBackbone) -> None:
        if self.exact_from is None:
            return
        if not placement.is_whole:
            raise LocalLearningError(
                f'FBAHook.exact_from={self.exact_from!r} takes the whole network in each process: '
                "set model_wrapper_cfg.type='LocalDataParallel', or leave it out"
            )
        if local_backbone.num_modules == 1:
            raise LocalLearningError(
                f'FBAHook.exact_from={self.exact_from!r} ends local learning, and num_modules=1 '
                'has none: leave it out, or give more modules'
            )

    def _loss_check(self, runner: Runner, local_backbone: LocalBackbone) -> LossCheck:
        mode = self.invalid_loss
        if mode == 'skip' and is_model_wrapper(runner.model):
            raise LocalLearningError(
                "FBAHook(invalid_loss='skip') is for one process: others would wait for gradients "
                "that don't come, leave it out"
            )
        if mode == 'skip' and local_backbone.head_batch_size is not None:
            raise LocalLearningError(
                "FBAHook(invalid_loss='skip') does not go with head_batch_size, which computes "
                'gradients before the whole loss is known: leave out one'
            )
        if any(type(hook).__name__ == 'CheckInvalidLossHook' for hook in runner.hooks):
            mode = 'stop'
        return LossCheck(mode, local_backbone.num_modules)

    def before_train(self, runner: Runner) -> None:
        """Attach to the model that is trained, and find the place where training goes on."""
        self.attach(runner.model, runner.optim_wrapper)
        super().before_train(runner)
        self._placement.begin(runner)

    def attach(self, model: nn.Module, optim_wrapper: LocalOptimWrapper) -> None:
        """Train ``model`` locally from now on, whoever calls its ``train_step``.

        Args:
            model: A model with one :class:`LocalBackbone`, or a :class:`LocalDataParallel`,
                :class:`LocalShardedDataParallel` or :class:`LocalModuleParallel` around it.
            optim_wrapper: Applies the gradients of the local losses.

        Raises:
            LocalLearningError: The model has no or several LocalBackbones.
        """
        self._placement = placement = placement_of(model)
        model = placement.model
        self._local_backbone = find_local_backbone(model)
        here = placement.modules_here is None  # Otherwise levels travel between processes.
        self._unread = self._local_backbone.unread_levels(model) if here else frozenset()
        placement.attach(optim_wrapper, self._opened)
        self._settings = self._settings or HeadSettings(
            model, self._local_backbone, self._local_backbone.auxiliary
        )
        self._optim_wrapper = optim_wrapper
        if self._check is not None:
            optim_wrapper.check_with(self._check)
        self._parameters = [
            self._local_backbone.local_parameters(i)
            for i in range(self._local_backbone.num_modules - 1)
        ]
        self._local_backbone.step = Idle()
        self._heads = AssignedTargets.heads_of(model)
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this iteration's random generators, so that a resumed training draws the same."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if (
            self.exact_from is not None
            and runner.iter >= self.exact_from * runner.max_iters
            and self._local_backbone.num_modules > 1
        ):
            self._train_exactly(runner)
        self._generator.manual_seed(
            (runner.seed or 0) * 1_000_003 + runner.iter + self._seed_rank() * 1_000_000_007
        )
        if self._check is not None:
            self._check.begin(runner.iter)

    def _train_exactly(self, runner: Runner) -> None:
        local_backbone = self._local_backbone
        local_backbone.train_exactly()
        if self._check is not None:
            self._check.num_modules = 1
        runner.logger.info(
            f'Iteration {runner.iter + 1} of {runner.max_iters}: no longer local learning, '
            f'exact_from={self.exact_from}:\n{local_backbone.describe()}'
        )

    def _seed_rank(self) -> int:
        return self._placement.seed_rank

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Write the local losses of this iteration to the log."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._log:
            # All in one read: on a GPU, each makes the host wait.
            values = torch.stack([value.float() for value in self._log.values()]).tolist()
            for name, value in zip(self._log, values):
                runner.message_hub.update_scalar(f'train/{name}', value)
        self.clear_log()

    def train_module(self, index: int, losses: Losses) -> None:
        """Train one module by its losses. :class:`LocalBackbone` calls it in the forward pass.

        Args:
            index: 0 to K - 2.
            losses: What the module's auxiliary network made of the batch, by name.
        """
        loss, terms = self._model.parse_losses(losses)
        if self._check is None or self._check.trains(index, loss, terms):
            # Hooks may freeze layers, and make them trainable again, at any time.
            trained = [p for p in self._parameters[index] if p.requires_grad]
            self._optim_wrapper.update_local(loss, trained)
        for name, value in terms.items():
            if name == 'loss' or self.log_terms:
                self._log[f'local_{index + 1}.{name}'] = value.detach()

    @property
    def _model(self) -> BaseModel:
        return cast(BaseModel, self._placement.model)

    def clear_log(self) -> None:
        """Forget the local losses of the last iteration."""
        self._log.clear()

    def before_val(self, runner: Runner) -> None:
        """Have all weights in all processes."""
        placement_of(runner.model).gather_weights(weight_averages(runner))

    def before_val_epoch(self, runner: Runner) -> None:
        """Take what was set on the model up to now for settings."""
        if self._handles and self._settings is not None and self._settings.follow():
            self._heads = AssignedTargets.heads_of(self._placement.model)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take what validation has left on the model for none."""
        if self._handles and self._settings is not None:
            self._settings.note()

    def after_train(self, runner: Runner) -> None:
        """Detach from the model."""
        placement_of(runner.model).gather_weights(weight_averages(runner))
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def _opened(self, inputs: Any, data_samples: Any) -> Iterator[LocalStep]:
        """Within this context, the backbone trains its modules on a batch.

        Args:
            inputs: See :class:`LocalStep`.
            data_samples: The same.
        """
        local_backbone, placement = self._local_backbone, self._placement
        settings = cast(HeadSettings, self._settings)
        step = LocalStep(
            placement.model,
            local_backbone,
            inputs,
            data_samples,
            self.bank,
            self.train_module,
            self._accumulate,
            self._generator,
            asked_for_slices=local_backbone.head_batch_size is not None,
            modules_here=placement.modules_here,
            received=placement.received,
            enter=placement.enter,
            unread=self._unread,
            log=self._log,
        )
        if self.invalid_loss != 'skip':  # It is to know the whole loss before any gradient.
            step.head_batch_size = local_backbone.images_at_once(step.images)
        local_backbone.step = step
        if settings.follow():
            self._heads = AssignedTargets.heads_of(placement.model)
        try:
            with step.targets.answering(self._heads):
                yield step
        finally:
            local_backbone.step = Idle()
            self.bank.clear()
            settings.note()

    def _before_forward(
        self, model: nn.Module, args: tuple, kwargs: dict
    ) -> Optional[Tuple[tuple, dict]]:
        """Opens a step where the model is asked for its loss; see :class:`LocalBackbone`."""
        if not self._is_trained(model, kwargs):
            return None
        kwargs = {**dict(zip(('inputs', 'data_samples'), args)), **kwargs}
        local_backbone = self._local_backbone
        step = self._open.enter_context(self._opened(kwargs['inputs'], kwargs['data_samples']))
        parts = step.slices(model, local_backbone)
        if len(parts) == 1:
            return None
        # The modules see the batch together, and the model's neck and head a slice at a time: all
        # but the last now. What the model's own loss() is left with is the last.
        features = cast(Features, local_backbone.train_modules(step.images, step))
        features, inputs, data_samples = step.feed_model(features, parts)
        self._open.enter_context(local_backbone.answering(features))
        self._open.enter_context(step.targets.only(parts[-1]))
        return (), dict(kwargs, inputs=inputs, data_samples=data_samples)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        if not self._is_trained(model, kwargs):
            return output
        step = self._local_backbone.step
        self._open.close()
        return step.joined(output) if isinstance(step, LocalStep) and output is not None else output

    def _is_trained(self, model: nn.Module, kwargs: dict) -> bool:
        # A copy of the model, for EMA say, has this hook too; a loss may ask for outputs first.
        return kwargs.get('mode') == 'loss' and model.training and model is self._placement.model

    def _accumulate(self, losses: Losses) -> None:
        self._optim_wrapper.accumulate_local(self._model.parse_losses(losses)[0])
