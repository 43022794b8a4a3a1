"""``FBAHook``: what a module may see while it trains."""

from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..errors import LocalLearningError
from ..local import AssignedTargets, FeatureBank, HeadSettings, LocalBackbone, LocalStep
from ..local.task_loss import Losses
from ..tasks import task_of_model
from .iteration_seed_hook import IterationSeedHook
from .local_data_parallel import LocalDataParallel
from .local_optim_wrapper import LocalOptimWrapper
from .local_optim_wrapper_constructor import check_settings
from .local_sharded_data_parallel import LocalShardedDataParallel, check_sharded
from .loss_check import LossCheck
from .module_parallel import LocalModuleParallel, begin_module_parallel, check_module_parallel
from .optimizer_settings import check_keys, check_param_groups
from .processes import joint_errors
from .whole_model import gather_weights

_WRAPPERS = (LocalDataParallel, LocalModuleParallel)


def find_local_backbone(model: nn.Module) -> LocalBackbone:
    """The one :class:`LocalBackbone` of a model.

    Args:
        model: A model of any OpenMMLab project.

    Raises:
        LocalLearningError: There is none, or more than one.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, LocalBackbone)}
    if not found:
        raise LocalLearningError(
            'FBAHook found no LocalBackbone in the model: wrap the backbone, model = dict(backbone='
            "dict(_delete_=True, type='LocalBackbone', backbone=_base_.model.backbone)), or in the "
            "same way mmagic's generator"
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


def _check_checkpointing(paths: Union[None, str, Sequence[str]], model: nn.Module) -> None:
    """Refuse MMEngine's wrapping of layers: the first of a module would get no gradients."""
    paths = [paths] if isinstance(paths, str) else paths or ()
    names = [
        name
        for name, module in _unwrapped(model).named_modules()
        if isinstance(module, LocalBackbone)
    ]
    for path in paths:
        if any(f'{path}.'.startswith(f'{name}.') for name in names):
            raise LocalLearningError(
                f'activation_checkpointing={path!r} leaves layers of a local module without '
                'gradients: set with_cp=True of the wrapped backbone instead'
            )


def _check_as_the_tool_does(runner, optim_wrapper: dict) -> None:
    """What ``tools/train.py`` finds wrong with settings and data, for other tools and Python."""
    # Of the layer above, which imports this one.
    from ..preflight.classes import check_classes
    from ..preflight.data import check_data

    model = _unwrapped(runner.model)
    with joint_errors():
        check_keys(optim_wrapper, model)
        check_param_groups(runner.optim_wrapper, model)
        if runner.cfg.get('train_dataloader') is not None:
            check_data(runner.cfg, 'train', 'val')
            check_classes(runner.cfg, model, 'train', 'val')


def _advise_own_heads(runner, local_backbone: LocalBackbone) -> None:
    """Say so where modules learn far less from one head that all of them share."""
    advice = task_of_model(_unwrapped(runner.model)).shared_head_advice
    if advice is not None and any(one.shares_head for one in local_backbone.auxiliary):
        runner.logger.warning(advice)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, _WRAPPERS) else model


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

    Raises:
        LocalLearningError: Unknown ``scope`` or ``invalid_loss``; in training: a loss is no number;
            before training: ``'skip'`` in several processes or with ``head_batch_size``, no or
            several LocalBackbones, another optimizer wrapper, an auxiliary network that doesn't
            fit, or another model wrapper than :class:`LocalDataParallel`,
            :class:`LocalShardedDataParallel` and :class:`LocalModuleParallel`.

    Example:
        >>> custom_hooks = [dict(type='FBAHook', scope='past')]
    """

    # As MMEngine's hooks have it.
    priority = 'NORMAL'

    def __init__(
        self,
        scope: str = 'past',
        bank_dtype: Optional[str] = None,
        log_terms: bool = False,
        invalid_loss: str = 'stop',
    ):
        if invalid_loss not in ('stop', 'skip'):
            raise LocalLearningError(f"invalid_loss={invalid_loss!r}: give 'stop' or 'skip'")
        self.invalid_loss = invalid_loss
        self._check: Optional[LossCheck] = None
        self.bank = FeatureBank(scope, bank_dtype)
        self.log_terms = log_terms
        self._model: Optional[nn.Module] = None
        self._local_backbone: Optional[LocalBackbone] = None
        self._optim_wrapper: Optional[LocalOptimWrapper] = None
        self._handles: list = []
        self._generator = torch.Generator()
        self._log: Dict[str, Tensor] = {}
        self._heads: List[nn.Module] = []
        self._answering = ExitStack()
        self._settings: Optional[HeadSettings] = None
        self._own_images = True

    def __deepcopy__(self, memo: dict) -> 'FBAHook':
        # The model holds this hook's callbacks. A copy of the model, for EMA say, is not trained.
        return self

    def before_run(self, runner) -> None:
        """Check everything that a local step needs, before checkpoints are touched."""
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            return  # Validation or testing alone: the runner builds no optimizer then.
        if is_model_wrapper(runner.model) and not isinstance(runner.model, _WRAPPERS):
            raise LocalLearningError(
                f'{type(runner.model).__name__} would not reduce the gradients of local losses '
                "between processes: set model_wrapper_cfg=dict(type='LocalDataParallel') in the "
                'config, or inherit configs/_base_/fba.py'
            )
        if sum(isinstance(hook, FBAHook) for hook in runner.hooks) > 1:
            raise LocalLearningError(
                'custom_hooks has several FBAHooks: modules would be trained as many times, leave '
                'one'
            )
        local_backbone = check_local_training(
            _unwrapped(runner.model), type(runner.optim_wrapper), self.bank.scope
        )
        name = next(n for n, m in _unwrapped(runner.model).named_modules() if m is local_backbone)
        settings = runner.cfg.get('optim_wrapper') or {}
        check_settings(local_backbone, name, settings)
        if not getattr(runner, 'is_checked', False):
            _check_as_the_tool_does(runner, settings)
        _advise_own_heads(runner, local_backbone)
        self._check = self._loss_check(runner, local_backbone)
        # Before other hooks' before_train, where some set what a resumed training has come to.
        self._settings = HeadSettings(
            _unwrapped(runner.model), local_backbone, local_backbone.auxiliary
        )
        _check_checkpointing(runner.cfg.get('activation_checkpointing'), runner.model)
        count = local_backbone.num_modules
        what = (
            f'Local learning in {count} modules, feature bank {self.bank.scope!r}'
            if count > 1
            else 'num_modules=1'
        )
        runner.logger.info(f'{what}:\n{local_backbone.describe()}')
        if isinstance(runner.model, LocalModuleParallel):
            check_module_parallel(runner, self.bank.scope)
            runner.logger.info(runner.model.describe())
        if isinstance(runner.model, LocalShardedDataParallel):
            check_sharded(runner, self.bank.scope)

    def _loss_check(self, runner, local_backbone: LocalBackbone) -> LossCheck:
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

    def before_train(self, runner) -> None:
        """Attach to the model that is trained, and find the place where training goes on."""
        self.attach(runner.model, runner.optim_wrapper)
        super().before_train(runner)
        if isinstance(runner.model, LocalModuleParallel):
            begin_module_parallel(runner)

    def attach(self, model: nn.Module, optim_wrapper: LocalOptimWrapper) -> None:
        """Train ``model`` locally from now on, whoever calls its ``train_step``.

        Args:
            model: A model with one :class:`LocalBackbone`, or a :class:`LocalDataParallel`,
                :class:`LocalShardedDataParallel` or :class:`LocalModuleParallel` around it.
            optim_wrapper: Applies the gradients of the local losses.

        Raises:
            LocalLearningError: The model has no or several LocalBackbones.
        """
        self._own_images = not isinstance(model, LocalModuleParallel)
        if not self._own_images:
            model.log = self._log
        self._local_backbone = find_local_backbone(_unwrapped(model))
        if self._own_images:  # Otherwise maps travel between processes.
            self._local_backbone.forget_unread_levels(_unwrapped(model))
        if isinstance(model, LocalShardedDataParallel):
            model.shard(optim_wrapper)
        self._model = model = _unwrapped(model)
        if self._settings is None:
            self._settings = HeadSettings(
                model, self._local_backbone, self._local_backbone.auxiliary
            )
        self._optim_wrapper = optim_wrapper
        if self._check is not None:
            optim_wrapper.loss_check = self._check
        self._parameters = [
            self._local_backbone.local_parameters(i)
            for i in range(self._local_backbone.num_modules - 1)
        ]
        self._local_backbone.trained_locally = True
        self._heads = AssignedTargets.heads_of(model)
        self._handles = [
            model.register_forward_pre_hook(self._open, with_kwargs=True),
            model.register_forward_hook(self._close, always_call=True),
        ]

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this iteration's random generators, so that a resumed training draws the same."""
        super().before_train_iter(runner, batch_idx, data_batch)
        self._generator.manual_seed(
            (runner.seed or 0) * 1_000_003 + runner.iter + self._seed_rank() * 1_000_000_007
        )
        if self._check is not None:
            self._check.begin(runner.iter)

    def _seed_rank(self) -> int:
        # Processes with modules of one batch draw as one process does, others for their images.
        return get_rank() if self._own_images else 0

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
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

    def clear_log(self) -> None:
        """Forget the local losses of the last iteration."""
        self._log.clear()

    def before_val(self, runner) -> None:
        """Have all weights in all processes."""
        gather_weights(runner)

    def before_val_epoch(self, runner) -> None:
        """Take what was set on the model up to now for settings."""
        if self._handles:
            self._follow()

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take what validation has left on the model for none."""
        if self._handles:
            self._settings.note()

    def after_train(self, runner) -> None:
        """Detach from the model."""
        gather_weights(runner)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _open(self, model: nn.Module, args: tuple, kwargs: dict) -> Optional[Tuple[tuple, dict]]:
        if kwargs.get('mode') != 'loss' or not model.training:
            return None
        kwargs = {**dict(zip(('inputs', 'data_samples'), args)), **kwargs}
        inputs, data_samples = kwargs['inputs'], kwargs['data_samples']
        local_backbone = self._local_backbone
        step = LocalStep(
            model,
            local_backbone,
            inputs,
            data_samples,
            self.bank,
            self.train_module,
            self._accumulate,
            self._generator,
        )
        if self.invalid_loss != 'skip':  # It is to know the whole loss before any gradient.
            step.head_batch_size = local_backbone.images_at_once(step.images)
        step.asked_for_slices = local_backbone.head_batch_size is not None
        local_backbone.step = step
        self._follow()
        self._answering.enter_context(step.targets.answering(self._heads))
        # The backbone handles all images but the last; the model's own loss() sees these only.
        last = step.slices(model, local_backbone)[-1]
        if last.start == 0:
            return None
        step.in_slices = True
        self._answering.enter_context(step.targets.only(last))
        return (), dict(kwargs, inputs=inputs[last], data_samples=data_samples[last])

    def _close(self, model: nn.Module, args: tuple, output: Any) -> Any:
        step, self._local_backbone.step = self._local_backbone.step, None
        self.bank.clear()
        self._answering.close()
        if step is not None:
            self._settings.note()
        return output if step is None or output is None else step.joined(output)

    def _follow(self) -> None:
        if self._settings.follow():
            self._heads = AssignedTargets.heads_of(self._model)

    def _accumulate(self, losses: Losses) -> None:
        self._optim_wrapper.accumulate_local(self._model.parse_losses(losses)[0])
