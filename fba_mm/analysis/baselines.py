"""The ways to train one model that local learning is to be compared with."""

import copy
from dataclasses import dataclass
from typing import Any, List, Sequence

from mmengine.config import Config, ConfigDict

from ..config import type_name
from ..errors import LocalLearningError
from ..localize import stock_form
from ..preflight.building import readable_errors
from ..tasks import backbone_key
from .activation_checkpointing import checkpoint_layers, takes_with_cp
from .synthetic_batch import single_images
from .training_step import TrainingStep

# What each is called on the command line and in reports.
BASELINES = {
    'bp': 'BP',
    'checkpointing': 'BP, checkpointing',
    'accumulation': 'BP, accumulation',
    'forward': 'forward and loss',
}


@dataclass(frozen=True)
class Baseline:
    """One way to train.

    Attributes:
        name: For tables and legends.
        kind: ``'local'`` or a key of :data:`BASELINES`.
        cfg: The config of this way.
    """

    name: str
    kind: str
    cfg: Config

    def build(self, device: str = 'cpu') -> TrainingStep:
        """Build model and optimizer, from scratch.

        Args:
            device: Where to train.

        Raises:
            LocalLearningError: They can't be built.
        """
        with readable_errors(f'{self.name}: the model cannot be built'):
            step = TrainingStep(self.cfg, device)
        key = backbone_key(self.cfg.model)
        if self.kind == 'checkpointing' and not self.cfg.model[key].get('with_cp'):
            checkpoint_layers(getattr(step.model, key))
        return step

    def run(self, step: TrainingStep, batch: dict) -> Any:
        """Do what this way does with one batch.

        Args:
            step: From :meth:`build`.
            batch: From :func:`synthetic_batch`.
        """
        if self.kind == 'forward':
            return step.loss_without_gradients(batch)
        if self.kind == 'accumulation':
            return [step(image) for image in single_images(batch)]
        return step(batch)


def baselines(cfg: Config, images: int, kinds: Sequence[str] = tuple(BASELINES)) -> List[Baseline]:
    """A config's local training, if it is that, and the ways to train the same model without.

    - ``bp``: back-propagation; ``with_cp`` is off.
    - ``checkpointing``: activation checkpointing, with ``with_cp=True`` where the backbone's class
      takes that, otherwise around the backbone's layers.
    - ``accumulation``: gradients accumulated over batches of one image.
    - ``forward``: forward and loss without gradients: what no way to train falls below.

    All start from random weights, and all apply their gradients after one batch, whatever the
    config's ``accumulative_counts``.

    Args:
        cfg: A training config. It is not changed.
        images: Number of images in the batch. With one, accumulation is the same as ``bp`` and
            left out.
        kinds: Which baselines. A config without local learning is its own ``bp``, which then is
            among them in any case.

    Returns:
        The ways, the config's own first.

    Raises:
        LocalLearningError: The config lacks a model, a backbone or an optimizer wrapper.

    Example:
        >>> cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
        >>> [baseline.name for baseline in baselines(cfg, 2, ['bp', 'checkpointing'])]
        ['local, K=4', 'BP', 'BP, checkpointing']
    """
    is_local = trains_locally(cfg)
    if not cfg.get('optim_wrapper'):
        raise LocalLearningError('the config has no optim_wrapper: give a complete training config')
    cfg = from_scratch(cfg)
    cfg.optim_wrapper.accumulative_counts = 1
    if 'Amp' in type_name(cfg.optim_wrapper.get('type')):
        # It is MMEngine's with CPU support, and without local losses does the same.
        cfg.optim_wrapper.type = 'AmpLocalOptimWrapper'
    found = []
    bp = cfg
    if is_local:
        found.append(Baseline(_local_name(cfg), 'local', cfg))
        amp = cfg.optim_wrapper.get('type') == 'AmpLocalOptimWrapper'
        bp = stock_form(cfg)
        if amp:
            bp.optim_wrapper.type = 'AmpLocalOptimWrapper'
    else:
        kinds = ['bp', *kinds]
    has_option = takes_with_cp(bp)
    if has_option:
        backbone_of(bp).with_cp = False
    for kind, name in BASELINES.items():
        if kind not in kinds or kind == 'accumulation' and images == 1:
            continue
        baseline = copy.deepcopy(bp)
        if kind == 'checkpointing' and has_option:
            backbone_of(baseline).with_cp = True
        if kind == 'accumulation':
            baseline.optim_wrapper.accumulative_counts = images
        found.append(Baseline(name, kind, baseline))
    return found


def backbone_of(cfg: Config) -> ConfigDict:
    """What a config's model has for a backbone, which is the generator of mmagic's.

    Args:
        cfg: A training config.

    Raises:
        LocalLearningError: It has no model, or one with neither.
    """
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise LocalLearningError('the config has no model: give a complete training config')
    backbone = model.get(backbone_key(model))
    if not isinstance(backbone, dict):
        raise LocalLearningError(
            'the config has no model.backbone and no model.generator: give the config of a '
            'detector, classifier or super-resolution network'
        )
    return backbone


def trains_locally(cfg: Config) -> bool:
    """Whether a config's backbone or generator is a LocalBackbone already.

    Args:
        cfg: A training config.

    Raises:
        LocalLearningError: It has no model with a backbone or generator.

    Example:
        >>> trains_locally(load_config('configs/retinanet_r50_fba.py'))
        True
    """
    return type_name(backbone_of(cfg).get('type')) == 'LocalBackbone'


def in_mixed_precision(cfg: Config, dtype: str = 'bfloat16') -> Config:
    """A config that trains under autocast, on CPU and GPU.

    Args:
        cfg: A training config. It is not changed.
        dtype: ``'bfloat16'`` or ``'float16'``.

    Example:
        >>> in_mixed_precision(cfg).optim_wrapper.type
        'AmpLocalOptimWrapper'
    """
    cfg = copy.deepcopy(cfg)
    if cfg.get('optim_wrapper'):
        cfg.optim_wrapper.update(type='AmpLocalOptimWrapper', dtype=dtype)
    return cfg


def _local_name(cfg: Config) -> str:
    local_backbone = backbone_of(cfg)
    parts = ['local', f'K={local_backbone.get("num_modules", 4)}']
    if cfg.optim_wrapper.get('apply') == 'eager':
        parts.append('eager')
    if local_backbone.backbone.get('with_cp'):
        parts.append('with_cp')
    return ', '.join(parts)


def from_scratch(cfg: Config) -> Config:
    """A copy of a config that loads no weights, wherever in the model that is asked for.

    Args:
        cfg: A training config. It is not changed.

    Example:
        >>> cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> 'init_cfg' in from_scratch(cfg).model.backbone
        False
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    cfg.model = ConfigDict(_without_pretrained(cfg.model))
    return cfg


def _without_pretrained(part: Any) -> Any:
    if isinstance(part, dict):
        kept = {
            key: _without_pretrained(value)
            for key, value in part.items()
            if not (key == 'init_cfg' and _is_pretrained(value))
        }
        # Weights that the constructor of a model would load, or download.
        for key in ('pretrained', 'teacher_ckpt'):
            if kept.get(key):
                kept[key] = False if kept[key] is True else None
        return kept
    if isinstance(part, (list, tuple)):
        return type(part)(_without_pretrained(item) for item in part)
    return part


def _is_pretrained(init_cfg: Any) -> bool:
    if isinstance(init_cfg, (list, tuple)):
        return any(_is_pretrained(one) for one in init_cfg)
    return isinstance(init_cfg, dict) and type_name(init_cfg.get('type')) in (
        'Pretrained',
        'PretrainedInit',
    )
