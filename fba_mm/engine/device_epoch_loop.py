"""``DeviceEpochLoop``: trains on batches that come from the device itself."""

import copy
from typing import Optional, Union

import torch
from mmengine.dist import get_world_size
from mmengine.registry import DATASETS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..config import type_name
from ..datasets.device_batches import DeviceBatches
from ..errors import LocalLearningError


@LOOPS.register_module()
class DeviceEpochLoop(EpochBasedTrainLoop):
    """MMEngine's training loop, with the whole data set and its augmentation on the device.

    For small images and mmpretrain's classifiers. It takes the config's ``train_dataloader`` as it
    is: data set, pipeline, batch size, ``drop_last`` and shuffling; workers aren't needed. See
    :class:`fba_mm.datasets.device_batches.DeviceBatches`. Validation goes on as before.

    Args:
        runner: The runner.
        dataloader: The config of the training dataloader.
        max_epochs: Number of epochs.
        joint_sample: Give one data sample per batch; see ``DeviceBatches``.
        max_images: Train on so many, at equal distances in the data set.
        channels_last: Store the model's weights with the channels innermost, which most CPUs and
            mixed precision on a GPU compute convolutions faster in. The results are the same.
        **kwargs: More arguments of ``EpochBasedTrainLoop``.

    Raises:
        LocalLearningError: The data set or its pipeline can't go to the device, or there are
            several processes.

    Example:
        >>> train_cfg = dict(type='DeviceEpochLoop', max_epochs=400, val_interval=10)
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Union[DataLoader, dict],
        max_epochs: int,
        joint_sample: bool = False,
        max_images: Optional[int] = None,
        channels_last: bool = False,
        **kwargs,
    ):
        if channels_last:
            runner.model.to(memory_format=torch.channels_last)
        if isinstance(dataloader, dict):
            dataloader = _device_batches(
                runner, dataloader, joint_sample=joint_sample, max_images=max_images
            )
        super().__init__(runner, dataloader, max_epochs, **kwargs)


def _device_batches(runner: Runner, dataloader: dict, **kwargs) -> DeviceBatches:
    if get_world_size() > 1:
        raise LocalLearningError(
            'DeviceEpochLoop runs in one process: set train_cfg.type=EpochBasedTrainLoop'
        )
    sampler = dataloader.get('sampler') or {}
    if type_name(sampler.get('type')) != 'DefaultSampler' or dataloader.get('batch_sampler'):
        raise LocalLearningError(
            'DeviceEpochLoop shuffles by itself: give train_dataloader.sampler='
            "dict(type='DefaultSampler', shuffle=True) and no batch_sampler"
        )
    dataset = dataloader['dataset']
    if isinstance(dataset, dict):
        dataset = DATASETS.build(copy.deepcopy(dataset))
    return DeviceBatches.from_dataset(
        dataset,
        dataloader['batch_size'],
        shuffle=sampler.get('shuffle', True),
        drop_last=dataloader.get('drop_last', False),
        seed=runner.seed,
        device=next(runner.model.parameters()).device,
        **kwargs,
    )
