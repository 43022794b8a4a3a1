"""Where a network's modules look: how strongly each answers at every place of an image."""

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import mmcv
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ..errors import LocalLearningError
from ..local.partition import unroll
from .trained_network import TrainedNetwork


def activation_maps(
    network: TrainedNetwork, samples: Sequence[Any], layers: Sequence[str]
) -> Dict[str, Tensor]:
    """The norm of some layers' outputs over their channels, as images.

    Each image's values are scaled from their least to their greatest: what all places have in
    common, such as a bias, says nothing of where a layer looks.

    Args:
        network: A trained network.
        samples: From :func:`validation_samples`.
        layers: Names of layers; :meth:`TrainedNetwork.module_ends` has those that end a module.

    Returns:
        By layer, (N, H, W) of 0 to 1, in the size of the images that the backbone is given.

    Raises:
        LocalLearningError: The network has no layer of a name.

    Example:
        >>> maps = activation_maps(fba, samples, fba.module_ends())
    """
    unknown = [name for name in layers if name not in network.layer_names]
    if unknown:
        raise LocalLearningError(
            f'no layer {unknown[0]}: the network has {", ".join(network.layer_names)}'
        )
    as_map = unroll(network.backbone).as_map
    images = network.preprocessed(samples)
    found = {}
    for name, x in network.layers(images):
        if name in layers:
            strength = as_map(x).float().norm(dim=1, keepdim=True)
            least, greatest = strength.amin((2, 3), True), strength.amax((2, 3), True)
            strength = (strength - least) / (greatest - least).clamp(min=1e-12)
            found[name] = F.interpolate(
                strength, images.shape[-2:], mode='bilinear', align_corners=False
            )[:, 0].cpu()
    return found


def shown_image(sample: Any) -> np.ndarray:
    """A validation image as people see it.

    Args:
        sample: An item of a validation data set: its ``inputs`` are (C, H, W) of 0 to 255.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    inputs = sample['inputs']
    inputs = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    image = torch.as_tensor(inputs).float().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    # Files are read as BGR by OpenMMLab's transforms; mmagic's pipelines and data sets that hold
    # their images have RGB.
    data_sample = sample['data_samples']
    is_file = getattr(data_sample, 'img_path', None) is not None
    of_mmagic = type(data_sample).__module__.startswith('mmagic')
    return mmcv.bgr2rgb(image) if is_file and not of_mmagic else image


def draw_activation_maps(
    images: Sequence[np.ndarray],
    rows: Mapping[str, Mapping[str, Tensor]],
    out_file: Union[str, 'os.PathLike[str]'],
    titles: Optional[Mapping[str, str]] = None,
    boxes: Optional[Sequence[Sequence[Tuple[float, float, float, float]]]] = None,
    title: str = 'Activation maps',
) -> Figure:
    """Draw activation maps over their images, a row for each image and network, and save as PNG.

    Args:
        images: As :func:`shown_image` makes them.
        rows: What :func:`activation_maps` has found, by network. All have the same layers.
        out_file: Where to save; missing folders are made.
        titles: What to write above the column of a layer; its name unless it is here.
        boxes: What is to be found in each image, (x1, y1, x2, y2).
        title: Of the picture.

    Returns:
        The figure that was saved.

    Raises:
        LocalLearningError: There is nothing to draw.
    """
    if not images or not rows:
        raise LocalLearningError('no activation map to draw: give at least one image and network')
    layers = list(next(iter(rows.values())))
    height, width = images[0].shape[:2]
    cell = 1.75
    figure = Figure(
        figsize=(
            cell * (len(layers) + 1) + 0.5,
            (cell * height / width + 0.06) * len(images) * len(rows) + 0.7,
        ),
        dpi=130,
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha='left')
    grid = figure.subplots(len(images) * len(rows), len(layers) + 1, squeeze=False)
    for number, image in enumerate(images):
        for order, (name, maps) in enumerate(rows.items()):
            axes_of_row = grid[number * len(rows) + order]
            _draw_row(axes_of_row, image, [maps[layer][number] for layer in layers])
            axes_of_row[0].set_ylabel(name, fontsize=9)
            for x1, y1, x2, y2 in boxes[number] if boxes else ():
                axes_of_row[0].plot(
                    [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color='#56B4E9', linewidth=1
                )
    for axes, layer in zip(grid[0][1:], layers):
        axes.set_title((titles or {}).get(layer, layer), fontsize=9)
    out_file = os.fspath(out_file)
    os.makedirs(os.path.dirname(os.path.abspath(out_file)), exist_ok=True)
    figure.savefig(out_file, format='png')
    return figure


def _draw_row(axes_of_row: List, image: np.ndarray, maps: Sequence[Tensor]) -> None:
    height, width = image.shape[:2]
    grey = image.mean(2) / 255
    axes_of_row[0].imshow(image)
    for axes, strength in zip(axes_of_row[1:], maps):
        axes.imshow(grey, cmap='gray', vmin=0, vmax=1)
        # What was padded to the size of a batch isn't shown.
        axes.imshow(strength[:height, :width].numpy(), cmap='inferno', vmin=0, vmax=1, alpha=0.7)
    for axes in axes_of_row:
        axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
