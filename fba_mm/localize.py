"""A stock config → its local-learning form."""

import copy
import inspect
import os
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from .config import class_of, custom_hooks, load_config, name_classes, parts_of, type_name
from .errors import LocalLearningError
from .local.auxiliary import SLM, auxiliary_class
from .memory_budget import check_budget
from .tasks import Task, backbone_key, num_classes_of, task_of, tasks

# The optimizer wrapper that does the same and takes local losses too.
_LOCAL_FORM = {
    'OptimWrapper': 'LocalOptimWrapper',
    'AmpOptimWrapper': 'AmpLocalOptimWrapper',
    'LocalOptimWrapper': 'LocalOptimWrapper',
    'AmpLocalOptimWrapper': 'AmpLocalOptimWrapper',
}
# What LocalDataParallel has in common with torch's DistributedDataParallel.
_WRAPPER_SETTINGS = ('bucket_cap_mb', 'broadcast_buffers', 'find_unused_parameters')
_LOCAL_WRAPPERS = ('LocalModuleParallel', 'LocalShardedDataParallel')
_STOCK_FORM = {
    'LocalOptimWrapper': 'OptimWrapper',
    'AmpLocalOptimWrapper': 'AmpOptimWrapper',
}
# What this package adds to configs that it trains.
_OWN_HOOKS = (
    'FBAHook',
    'SplitBatchHook',
    'IterationSeedHook',
    'LocalAccuracyHook',
    'LocalMemoryHook',
)


def localize(
    config: Union[str, os.PathLike, Config],
    num_modules: Union[int, str, Sequence[Union[int, str]]] = 4,
    scope: str = 'past',
    apply: Optional[str] = None,
    auxiliary: Union[None, str, dict] = None,
    head_batch_size: Optional[int] = None,
    auxiliary_lr_mult: Optional[float] = None,
    auxiliary_decay_mult: Optional[float] = None,
    memory_budget: Optional[Union[str, int, float]] = None,
    recompute: Optional[Union[int, str, Sequence[str]]] = None,
    slices: bool = True,
    exact_from: Optional[float] = None,
) -> Config:
    """Make any OpenMMLab config train its backbone by local learning.

    Args:
        config: The config, its path, or its name as ``'mmdet::retinanet/...'``. It is not changed.
        num_modules: K, ``'stages'``, ``'blocks'`` or a list of blocks to cut after; see
            :class:`LocalBackbone`. ``'auto'`` is to
            become the fewest modules with which a training step fits ``memory_budget``:
            ``tools/train.py`` and :func:`fba_mm.analysis.resolve_num_modules` fill it in.
        scope: What the feature bank offers; see :class:`FBAHook`.
        apply: When gradients are applied; see :class:`LocalOptimWrapper`. Unset, ``'eager'`` where
            gradients are clipped and modules have heads of their own: each module is clipped by its
            own norm then.
        auxiliary: Config of the auxiliary networks. ``'shared'``: FBA's, with the model's own neck
            and head, or a generator's own last layers. ``'pooled'``: that without blocks of the
            SLM's, the module's map being pooled to the sizes that the head asks for. ``'own'``:
            FBA's, with a copy of neck and head for each module. ``'light'``: FBA's, with a light
            detector, segmentor or reconstruction of its own for each module, which takes less
            memory and time; for detectors, segmentors, depth estimators, super-resolution. Unset,
            it is the task's default (:mod:`fba_mm.tasks`): ``'own'`` for image classifiers and for
            single-stage detectors without a neck, which learn less from a shared head, ``'light'``
            wherever else there is a light head, ``'pooled'`` for other detectors whose backbone
            passes on maps, and ``'shared'`` for the rest. The name of a method, as ``'DGL'``, is
            that method with its own defaults, for the classes of the model's head, or with heads
            of its own, light ones where the task has some.
        head_batch_size: Images that neck and head see at once; see :class:`LocalBackbone`.
        auxiliary_lr_mult: Learning rate of auxiliary parameters over that of the others.
        auxiliary_decay_mult: Weight decay of auxiliary parameters over that of the others.
        memory_budget: What the tensors of a training step may take, as ``'8GB'``; with
            ``num_modules='auto'``.
        recompute: Spans of each module that are recomputed in its backward pass; see
            :class:`LocalBackbone`.
        slices: Compute losses in slices where the result is the same; see :func:`sliced`. Where
            modules have heads of their own and the model an RPN, whose maps start at stride 4, also
            keep nothing of the neck but its input, and recompute it in the backward pass.
        exact_from: Share of the training after which it is back-propagation; see :class:`FBAHook`.

    Returns:
        A new config.

    Raises:
        LocalLearningError: The config has no backbone or generator, is a local-learning config
            already, or is none that the auxiliary networks fit; or ``'auto'`` and a budget are
            there one without the other.

    Example:
        >>> cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
        >>> cfg.model.backbone.type
        'LocalBackbone'
    """
    check_budget(num_modules, memory_budget)
    cfg = sliced(config) if slices else _own_copy(config)
    key, backbone = _stock_backbone(cfg, 'num_modules')
    task = task_of(cfg)
    if auxiliary is None:
        auxiliary = task.default_auxiliary(cfg.model)
    auxiliary = _method(cfg.model, task, auxiliary) or task.auxiliary(cfg.model, auxiliary)
    local_backbone = cfg.model[key] = ConfigDict(
        type='LocalBackbone', backbone=backbone, num_modules=num_modules, auxiliary=auxiliary
    )
    if isinstance(auxiliary.get('head'), dict) and any(map(cfg.model.get, task.large_heads)):
        local_backbone.reserve = 0.5
        if slices and isinstance(cfg.model.get('neck'), dict):
            _recompute(cfg.model.neck)
    if memory_budget is not None:
        local_backbone.memory_budget = memory_budget
    if head_batch_size is not None:
        local_backbone.head_batch_size = head_batch_size
    if recompute is not None:
        local_backbone.recompute = recompute

    hooks = [hook for name, hook in custom_hooks(cfg) if name != 'FBAHook']
    hook: dict = dict(type='FBAHook', scope=scope)
    if exact_from is not None:
        hook['exact_from'] = exact_from
    cfg.custom_hooks = [*hooks, hook]
    wrapper = cfg.get('model_wrapper_cfg') or {}
    if type_name(wrapper.get('type')) not in _LOCAL_WRAPPERS:
        cfg.model_wrapper_cfg = ConfigDict(
            {key: wrapper[key] for key in _WRAPPER_SETTINGS if key in wrapper},
            type='LocalDataParallel',
        )

    optim_wrapper = cfg.get('optim_wrapper')
    if optim_wrapper is not None:
        local_form = _local_form(optim_wrapper)
        _localize_constructor(optim_wrapper)
        optim_wrapper.type = local_form
        # What a user has set already, by --cfg-options for instance, is kept.
        if (
            apply is None
            and 'apply' not in optim_wrapper
            and _clips_apart(optim_wrapper, auxiliary)
        ):
            apply = 'eager'
        if apply is not None:
            optim_wrapper.apply = apply
        multipliers = dict(lr_mult=auxiliary_lr_mult, decay_mult=auxiliary_decay_mult)
        multipliers = {key: value for key, value in multipliers.items() if value is not None}
        if multipliers:
            paramwise = optim_wrapper.setdefault('paramwise_cfg', ConfigDict())
            keys = paramwise.setdefault('custom_keys', ConfigDict())
            keys[f'{key}.auxiliary'] = multipliers

    _import_package(cfg)
    return name_classes(cfg)


def checkpointed(
    config: Union[str, os.PathLike, Config],
    recompute: Union[int, str, Sequence[str]] = 'blocks',
    recompute_batch_size: Optional[int] = None,
    head: bool = False,
) -> Config:
    """Make any OpenMMLab config recompute the activations of its backbone: exact back-propagation.

    The backbone becomes a :class:`LocalBackbone` of one module. Everything else stays as it is, the
    optimizer wrapper, hooks and the model wrapper included, and so does what is learned, bit for
    bit.

    Args:
        config: The config, its path, or its name as ``'mmdet::retinanet/...'``. It is not changed.
        recompute: A number of spans, ``'stages'``, ``'blocks'``, or names of the blocks that end a
            span; see :class:`LocalBackbone`.
        recompute_batch_size: Images that are recomputed at once; see :class:`LocalBackbone`. With
            it, the result is the same up to the order of sums.
        head: Recompute the neck and dense heads, too; see :func:`fba_mm.models.recomputed`. It
            takes one more forward pass of them.

    Returns:
        A new config.

    Raises:
        LocalLearningError: The config has no backbone or generator, or one that is wrapped already.

    Example:
        >>> cfg = checkpointed('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 4)
        >>> cfg.model.backbone.type, cfg.optim_wrapper.type
        ('LocalBackbone', 'OptimWrapper')
    """
    cfg = _own_copy(config)
    key, backbone = _stock_backbone(cfg, 'recompute')
    cfg.model[key] = ConfigDict(
        type='LocalBackbone', backbone=backbone, num_modules=1, recompute=recompute
    )
    if recompute_batch_size is not None:
        cfg.model[key].recompute_batch_size = recompute_batch_size
    if head:
        for name in ('neck', *task_of(cfg).dense_heads):
            part = cfg.model.get(name)
            if isinstance(part, dict) and (
                name == 'neck'
                or hasattr(class_of(part, cfg.get('default_scope')), 'forward_single')
            ):
                _recompute(part)
    localize_optimizer(cfg)
    _import_package(cfg)
    return name_classes(cfg)


def image_by_image(
    config: Union[str, os.PathLike, Config], recompute: Union[int, str] = 3, head: bool = False
) -> Config:
    """Make a config train by back-propagation in the least memory: on each image after the other.

    The backbone is recomputed, and neck and head are fed, image by image wherever that is exact
    (:class:`LocalBackbone`'s ``recompute_batch_size`` and ``head_batch_size``), losses in slices,
    and gradients are applied as soon as they are complete. The result is the same up to the order
    of sums.

    Args:
        config: The config, its path, or its name as ``'mmdet::retinanet/...'``. It is not changed.
        recompute: As in :func:`checkpointed`.
        head: As in :func:`checkpointed`.

    Returns:
        A new config.

    Raises:
        LocalLearningError: The config can't be wrapped, or its optimizer wrapper has no local form.

    Example:
        >>> image_by_image('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model.backbone.recompute
        3
    """
    cfg = checkpointed(sliced(config), recompute, 1, head=head)
    cfg.model[backbone_key(cfg.model)].head_batch_size = 1
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), ConfigDict(type='FBAHook')]
    if cfg.get('optim_wrapper') is not None:
        cfg.optim_wrapper.type = _local_form(cfg.optim_wrapper)
    return cfg


def accumulated(config: Union[str, os.PathLike, Config], images: int = 1) -> Config:
    """Make a config compute the gradients of each batch on a few images at a time, and add them up.

    Losses and gradients are those of the whole batch; see :class:`SplitBatchHook` for the models of
    which that is true.

    Args:
        config: The config, its path, or its name as ``'mmpretrain::deit/...'``. It is not changed.
        images: Images at once.

    Returns:
        A new config.

    Raises:
        LocalLearningError: The config's optimizer wrapper has no local form.

    Example:
        >>> cfg = accumulated('mmpretrain::deit/deit-small_4xb256_in1k.py', 16)
        >>> cfg.custom_hooks[-1], cfg.optim_wrapper.type
        ({'type': 'SplitBatchHook', 'images': 16}, 'LocalOptimWrapper')
    """
    cfg = _own_copy(config)
    hooks = [hook for name, hook in custom_hooks(cfg) if name != 'SplitBatchHook']
    cfg.custom_hooks = [*hooks, ConfigDict(type='SplitBatchHook', images=images)]
    if cfg.get('optim_wrapper') is not None:
        cfg.optim_wrapper.type = _local_form(cfg.optim_wrapper)
    _import_package(cfg)
    return name_classes(cfg)


def sliced(config: Union[str, os.PathLike, Config]) -> Config:
    """Let a config compute its losses in slices, wherever the result is the same.

    Dense losses make several tensors as large as the logits, and autograd keeps them. In slices
    they take the memory of one slice. That is so for mmdet's focal, quality focal and varifocal
    loss, and for mmseg's decode heads on cross entropy; see :func:`fba_mm.models.in_slices`. Other
    losses are left alone, and so is all the rest of the config. So does mmdet's mask head, whose
    convolutions run once more for it. A line of the log tells what was changed.

    Args:
        config: The config, its path, or its name as ``'mmdet::retinanet/...'``. It is not changed.

    Returns:
        A new config.

    Example:
        >>> loss = sliced('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model.bbox_head.loss_cls
        >>> loss.type, loss.of
        ('InSlices', 'FocalLoss')
    """
    cfg = _own_copy(config)
    scope = cfg.get('default_scope') or ''
    found = [
        (name, part)
        for name, part in parts_of(cfg.get('model'), 'model')
        if any(task.computes_in_slices(part, _package_of(part, scope)) for task in tasks())
    ]
    for _, part in found:
        part['of'] = part['type']
        part['type'] = 'InSlices'
    if found:
        names = ', '.join(name for name, _ in found)
        print_log(f'Computed in slices, with the same result in less memory: {names}', 'current')
        _import_package(cfg)
    return name_classes(cfg)


def _method(model: dict, task: Task, name: Union[str, dict]) -> Optional[dict]:
    """An auxiliary network by its name, for what a model learns; None if this is no such name."""
    kind = auxiliary_class(name) if isinstance(name, str) else None
    if kind is None:
        return None
    takes = inspect.signature(kind.__init__).parameters
    method: Dict[str, Any] = dict(type=name)
    if 'num_classes' in takes:
        method['num_classes'] = num_classes_of(model)
    elif 'head' in takes and kind is not SLM and not isinstance(takes['head'].default, str):
        method['head'] = task.light_head(model) or task.own_head(model)
    return method


def _package_of(part: dict, scope: str) -> str:
    """Where a part's type is registered: its scope, where the class is, or the config's scope."""
    kind = part.get('type')
    if isinstance(kind, type):
        return kind.__module__.partition('.')[0]
    return str(kind).partition('.')[0] if '.' in str(kind) else scope


def _recompute(part: dict) -> None:
    """Let a stock module of a model's config be recomputed in the backward pass."""
    part['of'] = part['type']
    part['type'] = 'Recomputed'


def _own_copy(config: Union[str, os.PathLike, Config]) -> Config:
    is_name = isinstance(config, (str, os.PathLike))
    return load_config(os.fspath(config)) if is_name else copy.deepcopy(config)


def _stock_backbone(cfg: Config, setting: str) -> Tuple[str, ConfigDict]:
    """A config's backbone that isn't wrapped yet, and its name."""
    key, backbone = _backbone_of(cfg)
    if backbone is None and isinstance((cfg.get('model') or {}).get('detector'), dict):
        raise LocalLearningError(
            f'{type_name(cfg.model.get("type"))} has its backbone in model.detector and runs it '
            'several times for one loss, as semi-supervised and tracking models do, and local '
            'learning follows one pass: train the detector by itself, or without local learning'
        )
    if backbone is None:
        raise LocalLearningError(
            'the config has no model.backbone and no model.generator to cut: give the config of a '
            'detector, classifier, segmentor or super-resolution network'
        )
    if type_name(backbone.get('type')) == 'LocalBackbone':
        raise LocalLearningError(
            f'model.{key} is a LocalBackbone already: change its {setting} instead'
        )
    return key, backbone


def _local_form(optim_wrapper: dict) -> str:
    """The optimizer wrapper that does the same as a config's, and takes local losses too."""
    kind = type_name(optim_wrapper.get('type', 'OptimWrapper'))
    if kind not in _LOCAL_FORM:
        raise LocalLearningError(
            f'optim_wrapper.type={kind} has no local form: use one of '
            f'{", ".join(sorted(_LOCAL_FORM)[::-1])}'
        )
    return _LOCAL_FORM[kind]


def _import_package(cfg: Config) -> None:
    """Let a config register this package's classes."""
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    if 'fba_mm' not in names:
        # First: it brings operators that others may lack when they are imported.
        cfg.custom_imports = dict(imports, imports=['fba_mm'] + names)


def _backbone_of(cfg: Config) -> Tuple[str, Optional[ConfigDict]]:
    """What a config's model has for a backbone, and its name."""
    model = cfg.get('model') or {}
    key = backbone_key(model)
    backbone = model.get(key)
    return key, backbone if isinstance(backbone, dict) else None


def localize_optimizer(cfg: Config) -> None:
    """Do for a config with a LocalBackbone what :func:`localize` does for per-name settings.

    Args:
        cfg: Any config; its ``optim_wrapper`` is changed where it has such settings.
    """
    optim_wrapper = cfg.get('optim_wrapper')
    if not isinstance(cfg.get('model'), dict) or not isinstance(optim_wrapper, dict):
        return
    if type_name((_backbone_of(cfg)[1] or {}).get('type')) == 'LocalBackbone':
        _localize_constructor(optim_wrapper)


# Constructors that go by the names of the backbone's layers, and those that do with custom_keys.
_BY_NAME = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
_BY_KEY = (
    'DefaultOptimWrapperConstructor',
    'ForceDefaultOptimWrapperConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


def _localize_constructor(optim_wrapper: ConfigDict) -> None:
    """Let per-name settings reach the wrapped backbone under its stock names, and it alone.

    Args:
        optim_wrapper: Config of the optimizer wrapper; changed where it has such settings.

    Raises:
        LocalLearningError: The constructor makes several optimizers.
    """
    constructor = optim_wrapper.get('constructor')
    name = type_name(constructor or 'DefaultOptimWrapperConstructor')
    if name == 'MultiOptimWrapperConstructor':
        raise LocalLearningError(
            'optim_wrapper.constructor=MultiOptimWrapperConstructor is for models that train in '
            'steps of their own, as GANs do, and local learning follows the step of one loss: give '
            "a config of mmagic's BaseEditModel, which trains the same generator by its pixel_loss"
        )
    paramwise = optim_wrapper.get('paramwise_cfg') or ConfigDict()
    if name in _BY_NAME or name in _BY_KEY and paramwise.get('custom_keys'):
        if constructor:
            paramwise = ConfigDict(paramwise, stock_constructor=constructor)
        optim_wrapper.paramwise_cfg = paramwise
        optim_wrapper.constructor = 'LocalOptimWrapperConstructor'


def _clips_apart(optim_wrapper: dict, auxiliary: dict) -> bool:
    """Whether gradients are to be clipped by each module's norm, as eager steps do it.

    A threshold is chosen for the gradient of one loss. Modules with heads of their own have a loss
    each, and a norm over all would be several times as large. What shares a head learns together.
    """
    kind = type_name((optim_wrapper.get('optimizer') or {}).get('type', ''))
    return (
        bool(optim_wrapper.get('clip_grad'))
        and isinstance(auxiliary.get('head'), dict)
        and hasattr(torch.optim, kind)
    )


def stock_form(config: Config) -> Config:
    """Undo :func:`localize`, :func:`checkpointed` and :func:`sliced`: the stock config.

    Args:
        config: A local-learning config. It is not changed.

    Returns:
        A new config.

    Raises:
        LocalLearningError: It has no LocalBackbone.

    Example:
        >>> local = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> stock_form(local).model.backbone.type
        'ResNet'
    """
    cfg = copy.deepcopy(config)
    key, backbone = _backbone_of(cfg)
    if backbone is None or type_name(backbone.get('type')) != 'LocalBackbone':
        raise LocalLearningError(
            'the config has no LocalBackbone: its checkpoints are stock ones already'
        )
    cfg.model[key] = backbone.backbone
    for _, part in parts_of(cfg.model, 'model'):
        if part.get('type') in ('InSlices', 'Recomputed'):
            part['type'] = part.pop('of')
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for name, hook in custom_hooks(cfg) if name not in _OWN_HOOKS]
    checkpoint_hook = (cfg.get('default_hooks') or {}).get('checkpoint') or ConfigDict()
    if type_name(checkpoint_hook.get('type') or '') == 'AtomicCheckpointHook':
        checkpoint_hook.type = 'CheckpointHook'
    optim_wrapper = cfg.get('optim_wrapper')
    if optim_wrapper is not None:
        kind = optim_wrapper.get('type', 'OptimWrapper')
        optim_wrapper.type = _STOCK_FORM.get(type_name(kind), kind)
        optim_wrapper.pop('apply', None)
        paramwise = optim_wrapper.get('paramwise_cfg') or {}
        paramwise.get('custom_keys', {}).pop(f'{key}.auxiliary', None)
        if type_name(optim_wrapper.get('constructor') or '') == 'LocalOptimWrapperConstructor':
            del optim_wrapper.constructor
            if 'stock_constructor' in paramwise:
                optim_wrapper.constructor = paramwise.pop('stock_constructor')
    return name_classes(cfg)
