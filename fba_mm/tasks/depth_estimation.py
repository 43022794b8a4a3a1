"""Depth of each pixel from one image, by mmseg."""

import copy
import math
import os
from typing import Mapping, NamedTuple, Optional, Union

import numpy as np
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from torch import nn

from ..config import class_of, type_name
from ..datasets.label_maps import is_segmentation, look_at_all, size_as_read, turns_images
from ..errors import LocalLearningError
from ..method_owner import descends_from
from .segmentation import last_decode_head, pixel_sample
from .task import Size, Task, register_task

# Pillow's modes with one number for each pixel.
_NUMBERS = ('L', 'I', 'I;16', 'F')
# Of the light head, and of the reduced blocks before it.
_CHANNELS, _BLOCK_CHANNELS = 32, 64


class Depths(NamedTuple):
    """What the files of one training example hold.

    Args:
        fault: What is wrong with them, and how to fix it; None if nothing is.
        known: Pixels whose depth is known.
        far: Pixels that are farther away than the model can say.
    """

    fault: Optional[str]
    known: int = 0
    far: int = 0


@register_task
class DepthEstimation(Task):
    """One distance for each pixel."""

    name = 'depth'
    example = 'a depth estimator of mmseg'
    models = ('DepthEstimator',)
    heads = ('light', 'shared')

    def describes(self, cfg: Mapping) -> bool:
        """Whether the model is mmseg's ``DepthEstimator``, or of a class that descends from it."""
        if 'decode_head' not in cfg['model'] or not cfg['model'].get('type'):
            return False
        kind = class_of(cfg['model'], cfg.get('default_scope'))
        return descends_from(kind, *self.models)

    def default_auxiliary(self, model: dict) -> str:
        """``'light'``, but for heads that don't tell how far they see."""
        return 'shared' if self.light_head(model) is None else 'light'

    def auxiliary(self, model: dict, kind: Union[str, dict]) -> dict:
        """A light head takes whatever channels there are. See :class:`Task`."""
        if kind == 'light' and self.light_head(model) is None:
            raise LocalLearningError(
                "auxiliary='light' learns depths up to decode_head.max_depth, and "
                f'{type_name(last_decode_head(model).get("type"))} has none in its config: give '
                "'shared', or a config with a head of its own"
            )
        found = super().auxiliary(model, kind)
        return dict(found, channels=_BLOCK_CHANNELS) if kind == 'light' else found

    def light_head(self, model: dict) -> Optional[dict]:
        """VPD's head with few channels, on levels of an FPN. See :class:`Task`."""
        head = last_decode_head(model)
        if _max_depth(head) == math.inf:
            return None
        own = ('max_depth', 'align_corners', 'loss_decode')
        return dict(
            type='mmseg.DepthEstimator',
            neck=dict(type='mmseg.FPN', out_channels=_CHANNELS, num_outs=4),
            decode_head=dict(
                type='mmseg.VPDDepthHead',
                in_channels=[_CHANNELS] * 4,
                embed_dim=_CHANNELS // 2,
                feature_dim=_CHANNELS * 4,
                num_deconv_layers=1,
                num_deconv_filters=(_CHANNELS // 2,),
                **{key: copy.deepcopy(head[key]) for key in own if head.get(key) is not None},
            ),
            test_cfg=dict(mode='whole'),
        )

    def synthetic_target(
        self, model: nn.Module, size: Size, generator: torch.Generator
    ) -> BaseDataElement:
        """A depth map. See :class:`Task`."""
        farthest = getattr(model.decode_head, 'max_depth', 1.0)
        depths = torch.rand((1, *size), generator=generator) * farthest
        sample = pixel_sample(model, size)
        return sample.set_data(dict(gt_depth_map=PixelData(data=depths))) or sample

    def check_dataset(self, dataset: dict, kind: Optional[type], where: str, model: dict) -> None:
        """Look at all images and depth maps of mmseg's data sets. See :class:`Task`."""
        load = next(
            (
                step
                for step in dataset.get('pipeline') or []
                if type_name(step.get('type')) == 'LoadDepthAnnotation'
            ),
            None,
        )
        if load is None or kind is None or not is_segmentation(kind):
            return
        settings = {
            key: value
            for key, value in dataset.items()
            if key not in ('type', 'pipeline', '_scope_')
        }
        examples = kind(pipeline=[], **dict(settings, lazy_init=True)).load_data_list()
        if not examples:
            raise LocalLearningError(
                f'{where} holds no image: check data_root, data_prefix and img_suffix'
            )
        if 'depth_map_path' not in examples[0]:
            raise LocalLearningError(
                f'{where} has no depth maps to learn from: set data_prefix.depth_map_path to their '
                'folder'
            )
        factor = load.get('depth_rescale_factor', 1.0)
        farthest = _max_depth(last_decode_head(model)) / factor
        turns = turns_images(dataset)
        found = look_at_all(where, examples, lambda files: _look_at(files, farthest, turns))
        known, far = (sum(getattr(one, name) for one in found) for name in ('known', 'far'))
        if not known:
            raise LocalLearningError(
                f'{where}: no depth map tells any depth, all pixels are 0: check '
                'data_prefix.depth_map_path and depth_map_suffix'
            )
        if 2 * far > known:
            raise LocalLearningError(
                f'{where}: {far * 100 // known} % of the depths are beyond what the model can say, '
                f'its max_depth / depth_rescale_factor = {farthest:g}: set depth_rescale_factor in '
                "LoadDepthAnnotation to a metre over the files' unit (0.001 for millimetres), or "
                'decode_head.max_depth'
            )


def _max_depth(head: dict) -> float:
    """The depth up to which a head can say it, infinite if its config doesn't tell."""
    default = 10.0 if type_name(head.get('type')) == 'VPDDepthHead' else math.inf
    return head.get('max_depth', default)


def _look_at(files: dict, farthest: float, turns: bool) -> Depths:
    """What an example's files hold.

    Args:
        files: Their paths.
        farthest: The depth, in the files' unit, up to which the model can say it.
        turns: Whether images are read as cameras say that they are to be looked at.
    """
    img, depth_map = files['img_path'], files['depth_map_path']
    if not os.path.isfile(depth_map):
        return Depths(
            f'{depth_map} does not exist, the depth map of {img}: put it there, or check '
            'data_prefix.depth_map_path and depth_map_suffix'
        )
    try:
        size = size_as_read(img, turns)
        with Image.open(depth_map) as opened:
            if opened.mode not in _NUMBERS:
                return Depths(
                    f'{depth_map} is a picture in colours ({opened.mode}), not one depth for each '
                    'pixel: convert it to 16 bits, as depth in millimetres'
                )
            depths = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        return Depths(f'{img} and {depth_map} cannot be read ({error}): copy them again')
    if depths.shape != size[::-1]:
        return Depths(
            f'{depth_map} has {depths.shape[0]}x{depths.shape[1]} px, {img} {size[1]}x{size[0]}: '
            'they are to be of one size'
        )
    return Depths(None, int((depths > 0).sum()), int((depths > farthest).sum()))
