"""The model wrapper that several processes train with."""

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATA_SAMPLERS, MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from ..config import custom_hooks, type_name
from ..distributed import LocalDataParallel, LocalModuleParallel, PlacedModel
from ..distributed.undivided_samplers import UNDIVIDED
from ..errors import LocalLearningError
from .building import registered


def choose_model_wrapper(cfg: Config, training: bool = True) -> None:
    """Settle what holds the processes of a distributed job together: the config's choice, or ours.

    Args:
        cfg: The config; its ``model_wrapper_cfg`` is set if there are several processes.
        training: Whether it will be trained; else any wrapper will do.

    Raises:
        LocalLearningError: The config's choice does not reduce the gradients of local losses.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    local = any(name == 'FBAHook' for name, _ in custom_hooks(cfg))
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # MMEngine's own choice, but for local learning.
        wrapper = dict(
            type='LocalDataParallel' if local else 'MMDistributedDataParallel',
            broadcast_buffers=False,
        )
    kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
    kind = registered(MODEL_WRAPPERS, kind, cfg) if isinstance(kind, str) else kind
    if kind is None:
        raise LocalLearningError(
            f'model_wrapper_cfg.type={wrapper["type"]!r} is not registered: check its spelling, or '
            'leave model_wrapper_cfg out'
        )
    if issubclass(kind, LocalModuleParallel):
        if training:
            _read_all_images(cfg)
        else:  # The whole network is tested, in however many processes.
            wrapper, kind = dict(type='LocalDataParallel'), LocalDataParallel
    elif cfg.get('find_unused_parameters'):
        wrapper.setdefault('find_unused_parameters', True)
    if local and training and not issubclass(kind, PlacedModel):
        raise LocalLearningError(
            f'model_wrapper_cfg.type={type_name(wrapper["type"])} would not reduce the gradients '
            "of local losses between processes: set it to 'LocalDataParallel', or leave "
            'model_wrapper_cfg out'
        )
    if get_device() == 'cpu' and issubclass(kind, DistributedDataParallel):
        wrapper.setdefault('device_ids', None)  # MMEngine would give it a GPU.
    cfg.model_wrapper_cfg = wrapper


def _read_all_images(cfg: Config) -> None:
    """Where processes have modules, not images of their own, each goes through all images."""
    sampler = (cfg.get('train_dataloader') or {}).get('sampler')
    if not isinstance(sampler, dict):
        return
    kind = sampler.get('type')
    kind = registered(DATA_SAMPLERS, kind, cfg) if isinstance(kind, str) else kind
    if kind in UNDIVIDED:
        sampler['type'] = UNDIVIDED[kind].__name__
