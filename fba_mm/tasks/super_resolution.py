"""Super-resolution and other tasks with an image for each image, by mmagic."""

from typing import Any, List, Mapping, Optional, Union

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from ..datasets.image_pairs import check_pairs, pairs_of
from ..errors import LocalLearningError
from ..method_owner import is_method_of, method_owner
from .task import Size, Task, is_mean_loss, no_targets, register_task

# Means over all pixels.
_PIXEL_LOSSES = ('L1Loss', 'MSELoss', 'CharbonnierLoss')


@register_task
class SuperResolution(Task):
    """An image of more pixels for each image; the model's generator makes it, without a head."""

    name = 'super-resolution'
    example = "mmagic's BaseEditModel"
    models = ('BaseEditModel',)
    backbone_key = 'generator'
    heads = ('light',)
    known_costs = dict(light='EDSR ×2, K=4: level in 500 iterations (3 seeds)')

    def describes(self, cfg: Mapping) -> bool:
        """Whether the model has a generator, and no backbone."""
        model = cfg['model']
        return model.get('generator') is not None and model.get('backbone') is None

    def default_auxiliary(self, model: dict) -> str:
        """``'light'``."""
        return 'light'

    def auxiliary(self, model: dict, kind: Union[str, dict]) -> dict:
        """With the generator's own last layers, or with light ones. See :class:`Task`."""
        if kind in ('shared', 'light'):
            return dict(type='SLMReconstruction', head='shared' if kind == 'shared' else 'own')
        if kind in ('own', 'pooled'):
            raise LocalLearningError(
                f'auxiliary={kind!r} is for a model with a head, and one with a generator has '
                "none: give 'light', 'shared' or a config with a type"
            )
        return super().auxiliary(model, kind)

    def loss_is_image_mean(self, model: nn.Module) -> bool:
        """A pixel loss. See :class:`Task`."""
        loss = getattr(model, 'pixel_loss', None)
        is_stock = is_method_of(model, 'forward_train', ('mmagic',), ('BaseEditModel',))
        return is_stock and is_mean_loss(loss, 'mmagic', *_PIXEL_LOSSES)

    def synthetic_targets(
        self, model: nn.Module, size: Size, generator: torch.Generator, images: int
    ) -> List[BaseDataElement]:
        """Images of the size that the network makes. See :class:`Task`."""
        from mmagic.structures import DataSample

        # Those that train adversarially or on videos take more, or in another form.
        if not _learns_pairs(model):
            raise no_targets(model)
        network: Any = model.generator
        preprocessor: Any = model.data_preprocessor
        channels = preprocessor.mean.numel()
        image = next(network.parameters()).new_zeros(1, channels, *size)
        training = network.training
        network.eval()
        try:
            with torch.no_grad():
                shape = network(image).shape[1:]
        except (RuntimeError, AssertionError) as error:
            reason = ' '.join(str(error).split())[:160]
            raise LocalLearningError(
                f'{type(network).__name__} makes no image of {"×".join(map(str, image.shape[1:]))} '
                f'({reason}): give another shape'
            ) from error
        finally:
            network.train(training)
        return [
            DataSample(gt_img=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
            for _ in range(images)
        ]

    def check_dataset(self, dataset: dict, kind: Optional[type], where: str, model: dict) -> None:
        """Look at all pairs of mmagic's data sets. See :class:`Task`."""
        pairs = pairs_of(dataset, kind)
        if pairs is not None:
            check_pairs(dataset, where, pairs, model[self.backbone_key])


def _learns_pairs(model: nn.Module) -> bool:
    owners = [method_owner(type(model), name) for name in ('forward_train', 'train_step')]
    return [owner.__name__ for owner in owners] == ['BaseEditModel', 'BaseModel']
