"""Whether configs of a collection train by local learning, each tried by one small step."""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.utils import get_installed_path
from small_language_model import small_language_model
from torch import Tensor, nn

from fba_mm.analysis.synthetic_batch import batch_shape, synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.checkpoint import export_checkpoint
from fba_mm.config import type_name
from fba_mm.errors import LocalLearningError
from fba_mm.local import LocalBackbone
from fba_mm.localize import localize, stock_form
from fba_mm.preflight.building import build_model

# What became of a config, in the order of tables.
OUTCOMES = ('trains', 'refused', 'fails', 'not tried')

_STOCK_FAILS = 'without local learning: '


@dataclass
class Verdict:
    """What became of one config.

    Attributes:
        name: The config, as ``'retinanet/retinanet_r50_fpn_1x_coco.py'``.
        model: Type of its model.
        backbone: Type of its backbone; empty if it has none.
        outcome: ``'trains'``: one step went well, modules are isolated, and the exported checkpoint
            is the stock model's. ``'refused'``: a LocalLearningError says why not. ``'fails'``:
            something else went wrong. ``'not tried'``: the stock config makes no such step either.
        reason: One line, for all but ``'trains'``.
        digest: Of what was tried (:func:`small_digest`); empty if it wasn't.
    """

    name: str
    model: str = ''
    backbone: str = ''
    outcome: str = 'trains'
    reason: str = ''
    digest: str = ''

    def as_dict(self) -> Dict[str, str]:
        """For a file."""
        return asdict(self)


def collection(package: str = 'mmdet') -> Dict[str, Path]:
    """The configs that come with an OpenMMLab package, by name, without what they inherit.

    Args:
        package: Name of the installed package.

    Raises:
        LocalLearningError: It brings no configs along.
    """
    try:
        root = Path(get_installed_path(package)) / '.mim/configs'
    except ImportError as error:
        raise LocalLearningError(
            f'the package {package} is not installed: install it, or check its spelling'
        ) from error
    found = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob('*.py'))
        if '_base_' not in path.relative_to(root).parts
    }
    if not found:
        raise LocalLearningError(f'{package} has no configs in {root}: install it with pip')
    return found


def try_config(
    name: str, cfg: Config, num_modules: int = 4, sizes: Sequence[int] = (128, 320)
) -> Verdict:
    """Train a config's small form for one step by local learning, and check what came of it.

    Args:
        name: Of the config.
        cfg: The config; it is not changed.
        num_modules: K.
        sizes: Height and width of the random images; the next one is taken if the stock model
            makes no step on images of the one before, as SSD on small ones.
    """
    for size in sizes:
        verdict = _try_size(name, cfg, num_modules, (2, batch_shape(cfg)[1], size, size))
        if not verdict.reason.startswith(_STOCK_FAILS):
            break
    return verdict


def _try_size(
    name: str, cfg: Config, num_modules: int, shape: Tuple[int, int, int, int]
) -> Verdict:
    model = cfg.get('model') or {}
    backbone = model.get('backbone') if isinstance(model, dict) else None
    verdict = Verdict(name, type_name(model.get('type')), type_name((backbone or {}).get('type')))
    if not isinstance(backbone, dict) or not backbone:
        return _with(verdict, 'not tried', 'its model has no backbone of its own')
    with small_language_model(small(cfg)) as cfg:
        return _tried(verdict, cfg, num_modules, shape)


def _tried(
    verdict: Verdict, cfg: Config, num_modules: int, shape: Tuple[int, int, int, int]
) -> Verdict:
    try:
        local = localize(cfg, num_modules)
        step = _step_of(local)
        step.model.init_weights()  # Some layers have none before.
        data = synthetic_batch(step.model, shape)
        # First: a step from random weights may leave numbers that aren't finite.
        _check_export(step.model, local, data)
        _checked_step(step, data)
    except LocalLearningError as error:
        if 'no synthetic batch' in str(error):
            return _with(verdict, 'not tried', str(error))
        fault = _stock_fault(cfg, shape)
        if fault is not None:
            return _with(verdict, 'not tried', f'{_STOCK_FAILS}{fault}')
        return _with(verdict, 'refused', str(error))
    except Exception as error:  # Any of a thousand models.
        fault = _stock_fault(cfg, shape)
        if fault is not None:
            return _with(verdict, 'not tried', f'{_STOCK_FAILS}{fault}')
        return _with(verdict, 'fails', _line(error))
    return verdict


def small(cfg: Config) -> Config:
    """A config whose model is quick to build and to train for a step on the CPU.

    The kind of backbone, neck and head stays; depth, proposals, resizing of batches and what
    ImageNet weights ask for (frozen stages, fixed norms) go.

    Args:
        cfg: A config; it is not changed.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    _shrink(cfg.model)
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None:
        # In float32, one step at a time.
        for key in ('loss_scale', 'dtype', 'accumulative_counts'):
            wrapper.pop(key, None)
        if 'Amp' in type_name(wrapper.get('type', '')):
            wrapper.type = 'OptimWrapper'
    return cfg


def small_digest(cfg: Config) -> str:
    """The same for configs whose small forms have the same model, whatever else they say.

    Most of a collection differs in schedule and data alone, and one step tells as much of one as of
    the other. What an optimizer's settings would bring up is seen with the first such config only.

    Args:
        cfg: A config; it is not changed.
    """
    cfg = small(cfg)
    tried = {key: cfg.get(key) for key in ('default_scope', 'model', 'data_preprocessor')}
    return hashlib.sha256(json.dumps(tried, default=str, sort_keys=True).encode()).hexdigest()


def _shrink(part: Any) -> None:
    if isinstance(part, (list, tuple)):
        for item in part:
            _shrink(item)
    if not isinstance(part, dict):
        return
    kind = type_name(part.get('type')) if part.get('type') is not None else ''
    for key, value in part.items():
        if key in ('init_cfg', 'pretrained', 'teacher_ckpt'):
            fetched = any(word in str(value) for word in ('Pretrained', 'checkpoint'))
            part[key] = None if fetched or isinstance(value, str) else value
        elif key == 'depth' and value in (101, 152) and kind != 'DetectoRS_ResNet':
            part[key] = 50
        elif key == 'frozen_stages' and kind != 'EfficientNet':  # It counts from 0.
            part[key] = -1
        elif key == 'norm_eval':
            part[key] = False
        elif key == 'num_cp':  # It would need fairscale.
            part[key] = 0
        elif key == 'batch_augments':  # Some make images as large as in training.
            part[key] = None
        elif (
            key == 'norm_cfg'
            and isinstance(value, dict)
            and type_name(value.get('type')) in ('BN', 'SyncBN', 'MMSyncBN')
        ):
            part[key] = dict(value, type='BN', requires_grad=True)
        elif key == 'sampler' and isinstance(value, dict) and 'num' in value:
            value['num'] = 16
        elif key in ('nms_pre', 'max_per_img') and isinstance(value, int):
            part[key] = min(value, 32)
        elif key == 'depths' and kind == 'SwinTransformer':
            part[key] = [2, 2, 2, 2]
        _shrink(part[key])


def _checked_step(step: TrainingStep, data: dict) -> None:
    """One training step; every module's loss is finite, and reaches no other module."""
    hook, local_backbone = step.hooks[0], step.model.backbone
    of_module = _parameters_of_modules(local_backbone)
    original, trained = hook.train_module, []

    def train_module(index: int, losses: dict) -> None:
        loss, _ = step.model.parse_losses(losses)
        if not loss.isfinite():
            raise FloatingPointError(f'the loss of module {index + 1} is {float(loss.detach())}')
        reached = _reached_by(loss)
        if any(
            p in reached for k, parameters in enumerate(of_module) if k != index for p in parameters
        ):
            raise AssertionError(f'the loss of module {index + 1} reaches other modules')
        trained.append(index)
        original(index, losses)

    hook.train_module = train_module
    try:
        log = step(data)
    finally:
        hook.train_module = original
    if trained != list(range(local_backbone.num_modules - 1)):
        raise AssertionError(f'of {local_backbone.num_modules} modules, {trained} were trained')
    if not all(value.isfinite().all() for value in log.values()):
        raise FloatingPointError("the model's own loss is not finite")


def _reached_by(loss: Tensor) -> Set[Tensor]:
    """The parameters that a loss has gradients for, without computing these."""
    reached, seen, ahead = set(), set(), [loss.grad_fn]
    while ahead:
        function = ahead.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, 'variable'):
            reached.add(function.variable)
        ahead.extend(source for source, _ in function.next_functions)
    return reached


def _step_of(cfg: Config) -> TrainingStep:
    # What a runner tells models and heads that ask for it.
    MessageHub.get_current_instance().update_info_dict(
        dict(epoch=0, iter=0, max_epochs=1, max_iters=1)
    )
    return TrainingStep(cfg)


def _parameters_of_modules(local_backbone: LocalBackbone) -> List[List[nn.Parameter]]:
    backbone, segments = local_backbone.backbone, local_backbone.segments
    return [
        [p for i in module for p in segments[i].parameters(backbone) if p.requires_grad]
        for module in local_backbone.module_segments
    ]


def _check_export(model: nn.Module, cfg: Config, data: dict) -> None:
    """The exported checkpoint is one of the stock config's, and its backbone the same."""
    exported = export_checkpoint(model, dict(state_dict=model.state_dict()))
    stock = build_model(stock_form(cfg))
    stock.load_state_dict(exported['state_dict'], strict=True)
    image = torch.stack(list(data['inputs'])).float() / 255
    model.eval()
    stock.eval()
    with torch.no_grad():
        found, expected = model.backbone(image), stock.backbone(image)
    model.train()
    for ours, theirs in zip(_tensors(found), _tensors(expected)):
        if not torch.equal(ours, theirs):
            raise AssertionError('the exported backbone computes something else')


def _tensors(features: Any) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def _stock_fault(cfg: Config, shape: Tuple[int, int, int, int]) -> Optional[str]:
    """What goes wrong without local learning, or None."""
    try:
        step = _step_of(cfg)
        step(synthetic_batch(step.model, shape))
    except Exception as error:
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'


def _with(verdict: Verdict, outcome: str, reason: str) -> Verdict:
    verdict.outcome, verdict.reason = outcome, ' '.join(reason.split())[:300]
    return verdict


def compatibility_table(verdicts: Sequence[Verdict]) -> str:
    """What became of a collection's configs, as Markdown: by backbone, and each that didn't train.

    Args:
        verdicts: One for each config.
    """
    by_backbone: Dict[str, List[Verdict]] = {}
    for verdict in verdicts:
        by_backbone.setdefault(verdict.backbone or '–', []).append(verdict)
    lines = [
        '| backbone | configs | ' + ' | '.join(OUTCOMES) + ' |',
        '|---|---|' + '---|' * len(OUTCOMES),
    ]
    ordered = sorted(by_backbone.items(), key=lambda item: (-len(item[1]), item[0]))
    for name, found in [*ordered, ('**all**', list(verdicts))]:
        counts = [sum(v.outcome == outcome for v in found) for outcome in OUTCOMES]
        lines.append(f'| {name} | {len(found)} | ' + ' | '.join(map(str, counts)) + ' |')
    reasons: Dict[Tuple[str, str], List[str]] = {}
    for verdict in verdicts:
        if verdict.outcome != 'trains':
            reasons.setdefault((verdict.outcome, verdict.reason), []).append(verdict.name)
    lines += ['', '| outcome | reason | configs |', '|---|---|---|']
    for (outcome, reason), names in sorted(
        reasons.items(), key=lambda item: (OUTCOMES.index(item[0][0]), -len(item[1]))
    ):
        some = ', '.join(f'`{name}`' for name in names[:3])
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        lines.append(f'| {outcome} | {reason.replace("|", "/")} | {some}{more} |')
    return '\n'.join(lines) + '\n'


def sample(
    configs: Dict[str, Path], backbone_of: Callable[[Path], str], per_folder: int
) -> Iterator[Tuple[str, Path]]:
    """Some configs of each folder, as many of each backbone.

    Args:
        configs: From :func:`collection`.
        backbone_of: The type of a config's backbone.
        per_folder: Configs with one type of backbone in one folder.
    """
    seen: Dict[Tuple[str, str], int] = {}
    for name, path in configs.items():
        key = name.rpartition('/')[0], backbone_of(path)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= per_folder:
            yield name, path
