"""A trained model's backbone, layer by layer, on images of a config's validation data."""

from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union, cast

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import load_checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import check_fit
from ..config import config_scope
from ..errors import LocalLearningError
from ..local import LocalBackbone
from ..local.partition import IMAGES, Segment, cut, trace_footprints, unroll
from ..preflight.building import build_model, readable_errors
from ..preflight.data import check_data
from ..tasks import backbone_key
from .simulated_step import quiet
from .step_configs import from_scratch

# What stands in the place of a checkpoint for a network as it is initialized.
UNTRAINED = 'untrained'


@dataclass
class TrainedNetwork:
    """A model with its weights, and its backbone (mmagic's generator) as a sequence of layers.

    Attributes:
        cfg: The config that it was built from.
        model: The whole model, in evaluation mode.
        backbone: The wrapped or stock backbone.
        local: The :class:`LocalBackbone` around it, if there is one.
        segments: The backbone's layers, as it runs them: stem and blocks.
    """

    cfg: Config
    model: BaseModel
    backbone: nn.Module
    local: Optional[LocalBackbone]
    segments: List[Segment]

    @classmethod
    def load(
        cls,
        cfg: Config,
        checkpoint: str,
        device: str = 'cpu',
        trust: bool = False,
        seed: int = 0,
    ) -> 'TrainedNetwork':
        """Build a config's model and load a checkpoint.

        Args:
            cfg: A stock or a local-learning config of any task.
            checkpoint: A file, of this config or of its stock form; ``'untrained'`` for the
                network as it is initialized, from scratch.
            device: Where to compute.
            trust: Load a checkpoint even if that can run code from it.
            seed: Of an untrained network.

        Raises:
            LocalLearningError: The checkpoint doesn't fit, or the backbone is of no known family.

        Example:
            >>> bp = TrainedNetwork.load(load_config('bp.py'), 'work_dirs/bp/epoch_8.pth')
            >>> [name for name, _ in bp.layers(bp.preprocessed(samples))][:2]
            ['stem', 'layer1.0']
        """
        if checkpoint == UNTRAINED:
            cfg = from_scratch(cfg)
        model = cast(BaseModel, build_model(cfg))
        if checkpoint == UNTRAINED:
            torch.manual_seed(seed)
            with quiet(), readable_errors('the model cannot be initialized'), config_scope(cfg):
                model.init_weights()
        else:
            check_fit(model, checkpoint, 'test', trust)
            load_checkpoint(model, checkpoint, map_location='cpu')
        backbone = getattr(model, backbone_key(cfg.model), None)
        if not isinstance(backbone, nn.Module):
            raise LocalLearningError(
                f'{type(model).__name__} has no backbone to look into: give a config of a '
                'detector, classifier, segmentor or super-resolution network'
            )
        local = backbone if isinstance(backbone, LocalBackbone) else None
        if local is not None:
            backbone = local.backbone
        segments = unroll(backbone).segments
        return cls(cfg, model.to(device).eval(), backbone, local, segments)

    @property
    def is_cut(self) -> bool:
        """Whether it was trained in several local modules."""
        return self.local is not None and self.local.num_modules > 1

    @property
    def layer_names(self) -> List[str]:
        """What the backbone's layers are called, in order."""
        return [segment.name for segment in self.segments]

    def module_ends(self, num_modules: Union[int, str, Sequence, None] = None) -> List[str]:
        """The last layer of each local module.

        Args:
            num_modules: Cut in so many modules, as :class:`LocalBackbone` takes it. None takes the
                modules that the network was trained in, or its stages.
        """
        if num_modules is None and self.local is not None and self.is_cut:
            modules = self.local.module_segments
        else:
            unrolled = unroll(self.backbone)
            footprints = trace_footprints(
                self.backbone, unrolled.segments, unrolled.input_shape, unrolled.as_map
            )
            modules = cut(footprints, self.segments, num_modules or 'stages')
        return [self.segments[module[-1]].name for module in modules]

    def preprocessed(self, samples: Sequence[Any]) -> Tensor:
        """Images as the backbone is given them in validation.

        Each goes through the model's data_preprocessor by itself; smaller ones are padded with
        zeros at the right and below.

        Args:
            samples: Items of a validation data set.

        Returns:
            (N, C, H, W), on the model's device.
        """
        images = []
        with config_scope(self.cfg), torch.no_grad():
            for sample in samples:
                data = self.model.data_preprocessor(pseudo_collate([sample]), False)
                images.append(data['inputs'])
        height, width = (max(image.shape[dim] for image in images) for dim in (-2, -1))
        return torch.cat(
            [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
        )

    @torch.no_grad()
    def layers(self, images: Tensor) -> Iterator[Tuple[str, Tensor]]:
        """The output of each layer, one after the other.

        Args:
            images: From :meth:`preprocessed`.

        Yields:
            The layer's name, and its output, (N, C, H, W), or (N, L, C) where tokens flow.
        """
        x, kept = images, {IMAGES: images}
        for segment in self.segments:
            x = segment.advance(self.backbone, x, kept)
            yield segment.name, x


def validation_samples(cfg: Config, count: int, seed: int = 0) -> List[Any]:
    """Items of a config's validation data, drawn at random.

    Args:
        cfg: A config with a ``val_dataloader``, the first of them where there are several.
        count: How many, at most.
        seed: Of the draw.

    Raises:
        LocalLearningError: There are no validation data, or they can't be read.
    """
    dataloader = cfg.get('val_dataloader')
    dataloader = dataloader[0] if isinstance(dataloader, (list, tuple)) else dataloader
    if dataloader is None:
        raise LocalLearningError(
            'the config has no val_dataloader, whose images are to be looked at: give one that has'
        )
    check_data(cfg, 'val')
    with readable_errors(
        'val_dataloader.dataset cannot be read', 'check it and the data'
    ), config_scope(cfg):
        dataset = DATASETS.build(dataloader.dataset)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset), generator=generator)[:count].tolist()
        return [dataset[index] for index in order]
