"""The exact ways to train a model, to be measured beside local learning."""

import copy
from typing import List, Optional, Sequence

from mmengine.config import Config

from ..analysis.activation_checkpointing import takes_with_cp
from ..analysis.step_configs import backbone_of, from_scratch, trains_locally
from ..analysis.training_profile import Variant
from ..config import type_name
from ..errors import LocalLearningError
from ..localize import stock_form
from .ways import Series, Way, exact_ways

# Kinds of baselines, as the command line and reports name them.
BASELINES = ('bp', 'slices', 'checkpointing', 'images', 'accumulation', 'forward')


def baselines(
    cfg: Config, images: int, kinds: Sequence[str] = BASELINES, local: Sequence[Way] = ()
) -> List[Variant]:
    """A config's local training, and the exact ways to train the same model.

    - ``bp``: back-propagation; ``with_cp`` is off.
    - ``slices``: losses in slices, where the model has such.
    - ``checkpointing``: activation checkpointing: ``with_cp=True`` where the backbone takes that,
      and by our partition in three spans and in blocks.
    - ``images``: checkpointing by our partition, image by image.
    - ``accumulation``: gradients accumulated over single images, or over sixteenths of the batch;
      without and with checkpointing. Where that isn't exact, measuring it is refused.
    - ``forward``: forward and loss without gradients: what no way to train falls below.

    All start from random weights, and all apply their gradients after one batch, whatever the
    config's ``accumulative_counts``.

    Args:
        cfg: A training config. It is not changed.
        images: Number of images in the batch.
        kinds: Which baselines. A config without local learning is its own ``bp``, which then is
            among them in any case.
        local: Ways to train a stock config by local learning, to be measured, too.

    Returns:
        The ways, local ones first.

    Raises:
        LocalLearningError: The config lacks a model, a backbone or an optimizer wrapper.

    Example:
        >>> cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', num_modules=4)
        >>> [variant.name for variant in baselines(cfg, 2, ['bp', 'checkpointing'])]
        ['local, K=4', 'BP', 'with_cp=True', 'checkpointing, 3 spans', 'checkpointing, blocks']
    """
    is_local = trains_locally(cfg)
    if not cfg.get('optim_wrapper'):
        raise LocalLearningError('the config has no optim_wrapper: give a complete training config')
    bp = stock_form(cfg) if is_local else copy.deepcopy(cfg)
    if takes_with_cp(bp):
        backbone_of(bp).with_cp = False
    found = [_variant(_local_name(cfg), 'local', cfg)] if is_local else []
    found += [_variant(way.name, 'local', way.configure(bp)) for way in local]
    if 'bp' in kinds or not found:
        found.append(_variant('BP', 'bp', bp))
    for way in exact_ways(bp, images)[1:]:
        if way.kind in kinds:
            way = way.make(way.numbers[-1]) if isinstance(way, Series) else way
            found.append(_variant(way.name, way.kind, way.configure(bp)))
    if 'forward' in kinds:
        found.append(_variant('forward and loss', 'forward', bp))
    return found


def _variant(name: str, kind: str, cfg: Config) -> Variant:
    cfg = from_scratch(cfg)
    cfg.optim_wrapper.accumulative_counts = 1
    if 'Amp' in type_name(cfg.optim_wrapper.get('type')):
        # It is MMEngine's with CPU support, and without local losses does the same.
        cfg.optim_wrapper.type = 'AmpLocalOptimWrapper'
    num_modules: Optional[object] = None
    if trains_locally(cfg) and kind == 'local':
        num_modules = backbone_of(cfg).get('num_modules', 4)
    return Variant(name, kind, cfg, num_modules)


def _local_name(cfg: Config) -> str:
    local_backbone = backbone_of(cfg)
    parts = ['local', f'K={local_backbone.get("num_modules", 4)}']
    if cfg.optim_wrapper.get('apply') == 'eager':
        parts.append('eager')
    if local_backbone.backbone.get('with_cp'):
        parts.append('with_cp')
    return ', '.join(parts)
